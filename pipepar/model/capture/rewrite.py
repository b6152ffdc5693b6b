"""What export leaves in a graph and a pipeline cannot use: regions, asserts, writes into inputs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from pipepar.errors import CaptureError
from pipepar.model.aliases import alias_groups, memory_of, writes

aten = torch.ops.aten
higher_order = torch.ops.higher_order

# They check what the signature checks before the pipeline starts.
_ASSERTS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}


def inline_regions(module: fx.GraphModule) -> None:
    """Replace regions that change nothing in inference by their own nodes.

    Rotary embeddings run under autocast(enabled=False), and models switch gradients on or off;
    export makes one opaque node of each. Autocast that is enabled changes results and stays.

    Args:
        module: the exported module; changed in place.
    """
    regions = [node for node in module.graph.nodes if _region(node) is not None]
    for node in regions:
        _inline(module, node)
    if regions:
        inline_regions(module)  # a region may have held another


def _region(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]] | None:
    """The body and the arguments of a region that can be inlined."""
    if node.target is higher_order.wrap_with_set_grad_enabled:
        body, arguments = node.args[1], node.args[2:]
    elif node.target is higher_order.wrap_with_autocast and not node.args[2]:
        body, arguments = node.args[4], node.args[5:]
    else:
        return None
    return (body, arguments) if isinstance(body, fx.Node) else None


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    body, arguments = _region(node) or (node, ())
    inner = module.get_submodule(str(body.target))
    if not isinstance(inner, fx.GraphModule):
        raise CaptureError(f"{node.name} holds {type(inner).__name__}, expected a graph; report it")
    values: dict[fx.Node, Any] = dict(
        zip(inner.graph.find_nodes(op="placeholder"), arguments, strict=True)
    )
    with module.graph.inserting_before(node):
        for held in inner.graph.find_nodes(op="get_attr"):
            name = f"{body.target}_{held.target}".replace(".", "_")
            setattr(module, name, getattr(inner, str(held.target)))
            values[held] = module.graph.get_attr(name)
        result = module.graph.graph_copy(inner.graph, values)
    for user in list(node.users):
        if user.target is not operator.getitem or not isinstance(result, (tuple, list)):
            raise CaptureError(f"{user.name} uses the region {node.name} as a whole; report it")
        user.replace_all_uses_with(result[int(str(user.args[1]))])
        module.graph.erase_node(user)
    module.graph.erase_node(node)


def drop_asserts(graph: fx.Graph) -> None:
    """Remove export's own checks, and what only they used.

    Args:
        graph: changed in place.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ASSERTS:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def protect_inputs(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Let in-place operations write into a copy of an input, never into the caller's.

    Args:
        graph: changed in place.

    Returns:
        For each input that is written into, the copy that took its place.

    Raises:
        CaptureError: the model writes into a parameter or a buffer, so that its result would
            depend on the order of the microbatches.
    """
    memory = {node: memory_of(node.meta.get("val")) for node in graph.nodes}
    group = alias_groups(graph.nodes, memory)
    written = {group[argument]: node for node in graph.nodes for argument in writes(node)}
    copies: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if group[node] not in written:
            continue
        if node.op == "get_attr":
            raise CaptureError(
                f"{written[group[node]].name} writes into {node.target} while it computes, "
                f"expected state that stays as it is; call module.eval(), switch off what "
                f"updates it, or pass what it writes as an input"
            )
        if node.op == "placeholder" and node.users:
            copies[node] = _use_copy(graph, node)
    return copies


def _use_copy(graph: fx.Graph, node: fx.Node) -> fx.Node:
    first = next(n for n in graph.nodes if n.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(first):
        copy = graph.call_function(aten.clone.default, (node,))
    copy.meta = dict(node.meta)
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
    return copy
