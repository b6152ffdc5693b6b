"""A plain nn.Sequential needs no tracing: its children are the graph."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipepar.model.fakes import fake_tensor, faked
from pipepar.model.graph import Graph, digest_of
from pipepar.model.hollow import hollow
from pipepar.model.rewrite import protect_inputs
from pipepar.model.signature import OutputTemplate, Signature, TensorInput
from pipepar.model.state import named_weights, weight_specs


def capture_sequential(
    module: nn.Sequential,
    structure: pytree.TreeSpec,
    example: torch.Tensor,
    device: torch.device,
) -> Graph:
    """Make a graph with one node for each child, without tracing. *Local.*

    Args:
        module: a sequence of modules, at least one; nested plain sequences are opened.
        structure: how the example's arguments nest.
        example: the example's tensor; a sequence takes one.
        device: the device the graph is for.

    Returns:
        The graph. All sizes are free: nothing is known about what the children require.
    """
    shell = hollow(module)
    graph = fx.Graph()
    first = value = graph.placeholder("x")
    for name, _ in _children(shell):
        value = graph.call_module(name, (value,))
    graph.output((value,))
    _try_out(graph, shell, example, device)
    protect_inputs(graph)
    graph.lint()
    captured = fx.GraphModule(shell, graph)
    weights = weight_specs(shell, list(named_weights(shell)))
    leaves = (TensorInput(first.name, example.dtype, None, example.dim()),)
    return Graph(
        module=captured,
        inputs=(first.name,),
        outputs=(value.name,),
        weights=weights,
        signature=Signature(structure, (), leaves),
        template=OutputTemplate(pytree.tree_flatten(0)[1], (0,)),
        example=(example.detach().to("meta"),),
        device=device,
        digest=digest_of(captured, weights, device),
    )


def _children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Children in order, by name; a module that stands twice in the sequence comes twice."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if type(child) is nn.Sequential and not child._forward_hooks and len(child):
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _try_out(
    graph: fx.Graph, shell: nn.Module, example: torch.Tensor, device: torch.device
) -> None:
    """Run the children without memory, to learn what each makes and what it writes into."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in graph.find_nodes(op="placeholder"):
        node.meta["val"] = fake_tensor(example.detach(), mode, device)
    with faked(shell, mode, device), mode, torch.no_grad():
        for node in _calls(graph):
            child = shell.get_submodule(str(node.target))
            given = [argument.meta.get("val") for argument in node.all_input_nodes]
            before = _versions(given)
            made = _run(child, given)
            node.meta["val"] = made
            node.meta["aliases_input"] = made is None or _memory(made) & _memory(given)
            node.meta["writes_input"] = any(
                getattr(part, "inplace", False) for part in child.modules()
            ) or (before != _versions(given))


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module"]


def _run(child: nn.Module, given: list[object]) -> object:
    """What the child makes of fakes; None where it needs real values."""
    if any(value is None for value in given):
        return None
    try:
        return child(*given)
    except Exception:
        return None


def _versions(values: object) -> list[int]:
    """Counts of the writes that tensors have seen."""
    leaves = pytree.tree_leaves(values)
    return [leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _memory(values: object) -> set[int]:
    return {
        leaf.untyped_storage()._cdata
        for leaf in pytree.tree_leaves(values)
        if isinstance(leaf, torch.Tensor)
    }
