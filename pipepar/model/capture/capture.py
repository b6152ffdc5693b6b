"""Capture of any module as one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from pipepar.errors import CaptureError, InputError
from pipepar.model.capture.diagnosis import not_traceable
from pipepar.model.capture.flat_call import FlatCall
from pipepar.model.capture.graph import Graph, digest_of, get_attribute
from pipepar.model.capture.graph_state import graph_state, weight_specs
from pipepar.model.capture.rewrite import drop_asserts, inline_regions, protect_inputs
from pipepar.model.capture.sequential import capture_sequential, is_sequence
from pipepar.model.capture.shape_candidates import ShapeCandidate, resized, shape_candidates
from pipepar.model.capture.shape_probe import restriction
from pipepar.model.capture.signature import Constant, Signature, TensorInput
from pipepar.model.compat.torch_internals import (
    FakeTensor,
    FakeTensorMode,
    ShapeEnv,
    tracing_conditions,
)
from pipepar.model.fake_tensors import fake_tensor, faked, quiet

# FlatCall stores the model in this attribute, so exported names begin with it.
_WRAPPER = "model."


def capture(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: str = "cpu"
) -> Graph:
    """Return the graph of a module's operations, without its weights.

    A plain nn.Sequential, or Layers, called with tensors only becomes one node for each layer;
    see `is_sequence`. Every other module is traced by torch.export on fake tensors. Dimensions 0
    and 1 of its input tensors stay dynamic if the model and tracing allow it. During the call the
    module's tensors are replaced; afterwards it is as before.

    Args:
        module: the model, in eval mode; its parameters may be on meta.
        args: the example's positional arguments: tensors and Python values, nested in any way.
        kwargs: the example's keyword arguments.
        device: the device the graph is for, such as "cpu" or "cuda".

    Returns:
        The graph; the same in every process that captures the same model. See
        `Graph.restriction` for sizes that tracing fixed.

    Raises:
        CaptureError: the module cannot be traced, or the layers of a sequence do not fit; an
            argument or the output contains an unsupported object; an operation writes into a
            parameter, a buffer or a constant; a constant has no values; or an operation creates a
            tensor on meta.
        InputError: the module's forward does not take the example's arguments, or a layer of a
            sequence does not take their dtype or size; or a sequence cannot be copied.
    """
    call = FlatCall(module, args, kwargs)
    tensors = tuple(call.tensors.values())
    target = torch.device(device)
    if is_sequence(call):
        return capture_sequential(call, target)
    example_sizes = tuple(tuple(tensor.shape) for tensor in tensors)
    failure: Exception | None = None
    for candidate in shape_candidates(tensors, module):
        try:
            program = _export(call, candidate, target)
        except CaptureError:
            raise
        except Exception as error:
            if candidate.sizes == example_sizes:  # other sizes may be the cause of the error
                failure = error
            continue
        graph = _graph(call, program, target)
        try:
            graph.flatten_inputs(args, kwargs)
        except InputError:
            continue  # with these sizes the model took another branch than with the example's
        return replace(graph, restriction=restriction(call, graph, failure))
    raise not_traceable(module, failure)


def _export(call: FlatCall, candidate: ShapeCandidate, device: torch.device) -> ExportedProgram:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = tuple(
        fake_tensor(resized(tensor, sizes), mode, device)
        for tensor, sizes in zip(call.tensors.values(), candidate.sizes, strict=True)
    )
    dynamic = tuple(
        dict.fromkeys(range(min(candidate.dynamic_dims, each.dim())), Dim.AUTO) for each in inputs
    )
    # Without no_grad here, every no_grad inside the model would become an opaque node.
    with faked(call, mode, device), torch.no_grad(), quiet():
        return torch.export.export(call, inputs, dynamic_shapes={"tensors": dynamic}, strict=False)


def _graph(call: FlatCall, program: ExportedProgram, device: torch.device) -> Graph:
    exported = program.module(check_guards=False)
    if not isinstance(exported, fx.GraphModule):
        raise CaptureError(
            f"torch.export returned a {type(exported).__name__}, expected a GraphModule; report it"
        )
    inline_regions(exported)
    drop_asserts(exported.graph)
    graph, results = _renamed(exported.graph, list(call.tensors))
    copies = protect_inputs(graph)
    graph.lint()
    targets = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    module = fx.GraphModule(graph_state(call.model, exported, targets, _WRAPPER), graph)
    weights = weight_specs(call.model, targets)
    _check_device(module, weights)
    placeholders = graph.find_nodes(op="placeholder")
    outputs, template = call.output.template([copies.get(x, x) for x in results])
    return Graph(
        module=module,
        inputs=tuple(node.name for node in placeholders),
        outputs=outputs,
        weights=weights,
        signature=_signature(call, placeholders),
        template=template,
        example=tuple(tensor.detach().to("meta") for tensor in call.tensors.values()),
        device=device,
        digest=digest_of(module, weights, device),
    )


def _renamed(old: fx.Graph, names: list[str]) -> tuple[fx.Graph, list[Any]]:
    """Return a copy of a graph, and its results: nodes of the copy, and constants.

    Inputs get the names of the example's tensors, and weights their names in the model.
    """
    new = fx.Graph()
    values: dict[fx.Node, Any] = {}
    input_names = iter(names)
    for node in old.nodes:
        if node.op == "placeholder":
            values[node] = new.placeholder(next(input_names))
        elif node.op == "get_attr":
            values[node] = new.get_attr(str(node.target).removeprefix(_WRAPPER))
        elif node.op != "output":
            values[node] = new.node_copy(node, values.__getitem__)
        else:
            results = [values[x] if isinstance(x, fx.Node) else x for x in _results(node)]
            new.output(tuple(dict.fromkeys(x for x in results if isinstance(x, fx.Node))))
            return new, results
        values[node].meta = {**node.meta, "module": _module(node)}
    raise CaptureError("torch.export returned a graph without an output, expected one; report it")


def _module(node: fx.Node) -> str:
    """Return the path, in the model, of the innermost module that the node was traced in.

    It is empty for the model itself, and for nodes that tracing adds.
    """
    *_, (path, _) = node.meta.get("nn_module_stack", {}).values() or [("", None)]
    inside = f"{path}.".startswith(_WRAPPER)
    return f"{path}.".removeprefix(_WRAPPER).rstrip(".") if inside else ""


def _results(output: fx.Node) -> Sequence[Any]:
    results = output.args[0]
    return results if isinstance(results, (tuple, list)) else (results,)


def _signature(call: FlatCall, placeholders: list[fx.Node]) -> Signature:
    nodes = iter(placeholders)
    leaves = [
        _tensor_input(next(nodes)) if isinstance(leaf, torch.Tensor) else Constant(name, leaf)
        for name, leaf in zip(call.names, call.leaves, strict=True)
    ]
    return Signature(call.structure, call.keywords, tuple(leaves), _conditions(placeholders))


def _tensor_input(node: fx.Node) -> TensorInput:
    value = node.meta["val"]
    return TensorInput(node.name, value.dtype, tuple(map(_size, value.shape)), value.dim())


def _size(size: int | torch.SymInt) -> Any:
    """Return a fixed size as an int and a dynamic one as its expression."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
    return int(expression) if expression.is_Integer else expression


def _conditions(placeholders: list[fx.Node]) -> tuple[Any, ...]:
    """Return the guards of tracing and the upper bounds of dynamic sizes; no lower bounds."""
    modes = [node.meta["val"].fake_mode for node in placeholders]
    if not modes or modes[0].shape_env is None:
        return ()
    return tracing_conditions(modes[0].shape_env)


def _check_device(module: fx.GraphModule, weights: Mapping[str, Any]) -> None:
    """Refuse constants without values, and operations that create tensors on meta.

    With a mask on meta, for example, the results would be random, without an error.
    """
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in weights:
            state = get_attribute(module, str(node.target))
            if isinstance(state, FakeTensor) or getattr(state, "is_meta", False):
                raise CaptureError(
                    f"the constant {node.target} has no values; build it outside of "
                    f"torch.device('meta'), or register it as a parameter"
                )
        arguments = pytree.tree_leaves((node.args, node.kwargs))
        if any(isinstance(x, torch.device) and x.type == "meta" for x in arguments):
            raise CaptureError(
                f"{node.name} creates a tensor on the meta device, expected another device; take "
                f"the device from an input of the model"
            )
