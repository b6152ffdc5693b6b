"""Any module becomes one graph."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pipepar.errors import CaptureError, InputError
from pipepar.model.examples import Trial, resized, trials
from pipepar.model.fakes import fake_tensor, faked
from pipepar.model.graph import Graph, digest_of, get_attribute
from pipepar.model.rewrite import drop_asserts, inline_regions, protect_inputs
from pipepar.model.sequential import capture_sequential
from pipepar.model.signature import (
    ConstantInput,
    OutputTemplate,
    Signature,
    TensorInput,
    flatten_call,
)
from pipepar.model.state import graph_state, weight_specs

# Prefix that the flattening wrapper puts before the model's own names.
_WRAPPER = "model."


def capture(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: str = "cpu"
) -> Graph:
    """Turn a module into a graph of its operations, without its weights. *Local.*

    A plain nn.Sequential becomes one node for each child. Everything else is traced by
    torch.export on tensors without memory. Dimensions 0 and 1 of every input tensor stay free
    where the model allows it. The module is left as it was.

    Args:
        module: the model, in eval mode; its parameters may be on meta.
        args: an example's positional arguments: tensors, Python values and None, nested in any way.
        kwargs: an example's keyword arguments.
        device: the device the graph is for, such as "cpu" or "cuda".

    Returns:
        The graph; the same in every process that captures the same model.

    Raises:
        CaptureError: the module cannot be traced.
    """
    leaves, structure = flatten_call(args, kwargs)
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    if type(module) is nn.Sequential and len(module) and len(leaves) == len(tensors) == len(args):
        return capture_sequential(module, structure, tensors, torch.device(device))
    names = _input_names(module, args, kwargs)
    failure: Exception | None = None
    for trial in trials(tensors, module):
        call = _FlatCall(module, leaves, structure)
        try:
            program = _export(call, tensors, trial, torch.device(device))
        except CaptureError:
            raise
        except Exception as error:
            failure = error
            continue
        graph = _graph(call, program, names, tensors, torch.device(device))
        try:
            graph.flatten_inputs(args, kwargs)
        except InputError:
            continue  # these sizes took another path than the example would
        return graph
    raise _not_traceable(module, failure)


class _FlatCall(nn.Module):
    """The model behind a plain call: tensors in, a tuple of values out."""

    def __init__(self, model: nn.Module, leaves: list[Any], structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._leaves = tuple(leaves)
        self._structure = structure
        self._output = _Output()

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        """Rebuild the call, and flatten what it returns."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, torch.Tensor) else x for x in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return self._output.flatten(self.model(*args, **kwargs))

    @property
    def output(self) -> _Output:
        """What the last call returned."""
        return self._output


class _Output:
    """How the traced output nests; leaves that are no values of the graph are kept here."""

    def __init__(self) -> None:
        self.structure = pytree.tree_flatten(None)[1]
        self.leaves: list[Any] = []

    def flatten(self, output: Any) -> tuple[Any, ...]:
        leaves, self.structure = pytree.tree_flatten(output)
        self.leaves = [_IS_VALUE if _is_value(leaf) else _constant(leaf) for leaf in leaves]
        return tuple(leaf for leaf in leaves if _is_value(leaf))


_IS_VALUE = object()
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_CONSTANTS = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (torch.Tensor, *_SYMBOLIC))


def _constant(leaf: Any) -> ConstantInput:
    if not isinstance(leaf, _CONSTANTS):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        raise CaptureError(
            f"the model's output contains a {kind}, expected tensors in tuples, lists, dicts or "
            f"registered dataclasses; register it with torch.export.register_dataclass({kind})"
        )
    return ConstantInput("output", leaf)


def _export(
    call: _FlatCall, tensors: Sequence[torch.Tensor], trial: Trial, device: torch.device
) -> ExportedProgram:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = tuple(
        fake_tensor(resized(tensor, sizes), mode, device)
        for tensor, sizes in zip(tensors, trial.sizes, strict=True)
    )
    free = tuple(dict.fromkeys(sorted(dims), Dim.AUTO) for dims in trial.free)
    # Under no_grad, or every no_grad inside the model would become an opaque node.
    with faked(call, mode, device), torch.no_grad():
        return torch.export.export(call, inputs, dynamic_shapes={"tensors": free}, strict=False)


def _graph(
    call: _FlatCall,
    program: ExportedProgram,
    names: list[str],
    tensors: tuple[torch.Tensor, ...],
    device: torch.device,
) -> Graph:
    exported = program.module(check_guards=False)
    if not isinstance(exported, fx.GraphModule):
        raise CaptureError(f"export gave a {type(exported).__name__}, expected a GraphModule")
    inline_regions(exported)
    drop_asserts(exported.graph)
    graph, results = _renamed(
        exported.graph, names, [isinstance(x, torch.Tensor) for x in call._leaves]
    )
    protect_inputs(graph)
    graph.lint()
    targets = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    module = fx.GraphModule(graph_state(call.model, exported, targets, _WRAPPER), graph)
    weights = weight_specs(call.model, targets)
    _check_device(module, weights)
    placeholders = graph.find_nodes(op="placeholder")
    outputs, template = _template(call.output, results)
    return Graph(
        module=module,
        inputs=tuple(node.name for node in placeholders),
        outputs=outputs,
        weights=weights,
        signature=_signature(call, names, placeholders),
        template=template,
        example=tuple(tensor.detach().to("meta") for tensor in tensors),
        device=device,
        digest=digest_of(module, weights, device),
    )


def _renamed(old: fx.Graph, names: list[str], is_tensor: list[bool]) -> tuple[fx.Graph, list[Any]]:
    """The same nodes, with the model's own names for inputs and state; and the result of each."""
    new = fx.Graph()
    values: dict[fx.Node, Any] = {}
    own = iter(name for name, tensor in zip(names, is_tensor, strict=True) if tensor)
    for node in old.nodes:
        if node.op == "placeholder":
            values[node] = new.placeholder(next(own))
        elif node.op == "get_attr":
            values[node] = new.get_attr(str(node.target).removeprefix(_WRAPPER))
        elif node.op != "output":
            values[node] = new.node_copy(node, values.__getitem__)
        else:
            results = [values[x] if isinstance(x, fx.Node) else x for x in _results(node)]
            new.output(tuple(dict.fromkeys(x for x in results if isinstance(x, fx.Node))))
            return new, results
        values[node].meta = dict(node.meta)
    raise CaptureError("export gave a graph without an output")


def _results(output: fx.Node) -> Sequence[Any]:
    results = output.args[0]
    return results if isinstance(results, (tuple, list)) else (results,)


def _template(output: _Output, results: list[Any]) -> tuple[tuple[str, ...], OutputTemplate]:
    given = iter(results)
    leaves = [next(given) if leaf is _IS_VALUE else leaf for leaf in output.leaves]
    # A size that export fixed comes back as a number.
    leaves = [x if isinstance(x, (fx.Node, ConstantInput)) else _constant(x) for x in leaves]
    names = tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, fx.Node)))
    return names, OutputTemplate(
        structure=output.structure,
        leaves=tuple(names.index(x.name) if isinstance(x, fx.Node) else x for x in leaves),
    )


def _signature(call: _FlatCall, names: list[str], placeholders: list[fx.Node]) -> Signature:
    given = iter(placeholders)
    leaves = [
        _tensor_input(next(given)) if isinstance(leaf, torch.Tensor) else ConstantInput(name, leaf)
        for name, leaf in zip(names, call._leaves, strict=True)
    ]
    return Signature(call._structure, tuple(leaves), _conditions(placeholders))


def _tensor_input(node: fx.Node) -> TensorInput:
    value = node.meta["val"]
    sizes = tuple(s.node.expr if isinstance(s, torch.SymInt) else int(s) for s in value.shape)
    return TensorInput(node.name, value.dtype, sizes, value.dim())


def _conditions(placeholders: list[fx.Node]) -> tuple[Any, ...]:
    """What tracing took for granted about the free sizes."""
    modes = [node.meta["val"].fake_mode for node in placeholders]
    if not modes or modes[0].shape_env is None:
        return ()
    env = modes[0].shape_env
    guards = dict.fromkeys(guard.expr.xreplace(env.replacements) for guard in env.guards)
    bounds = [
        symbol <= bound.upper
        for symbol, bound in env.var_to_range.items()
        if symbol not in env.replacements
        and bound.upper.is_Integer
        and bound.upper < sys.maxsize - 1
    ]
    return tuple(x for x in dict.fromkeys([*guards, *bounds]) if x is not sympy.true)


def _input_names(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each leaf of the call: the parameter's, and the path inside it."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    positional += [f"arg{i}" for i in range(len(positional), len(args))]
    call = (
        dict(zip(positional, args, strict=False)),
        {name: kwargs[name] for name in sorted(kwargs)},
    )
    names = []
    for part in call:
        for path, _ in pytree.tree_flatten_with_path(part)[0]:
            words = re.sub(r"\W+", "_", pytree.keystr(path)).strip("_")
            names.append(words if words.isidentifier() else f"input_{words}")
    return names


def _check_device(module: fx.GraphModule, weights: Mapping[str, Any]) -> None:
    """Nothing of the tracing may remain: a meta mask gives random results without an error."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in weights:
            state = get_attribute(module, str(node.target))
            if isinstance(state, FakeTensor) or getattr(state, "is_meta", False):
                raise CaptureError(
                    f"the constant {node.target} has no values; build it outside of "
                    f"torch.device('meta'), or register it as a parameter"
                )
        fixed = [*pytree.tree_leaves((node.args, node.kwargs))]
        if any(isinstance(x, torch.device) and x.type == "meta" for x in fixed):
            raise CaptureError(
                f"{node.name} creates a tensor on the meta device, expected a real one; take the "
                f"device from an input of the model"
            )


def _not_traceable(module: nn.Module, failure: Exception | None) -> CaptureError:
    error = CaptureError(
        f"{type(module).__name__} cannot be turned into a graph: {_reason(failure)}"
        f"{_user_line(failure)}; give the model as an nn.Sequential of its layers, or change "
        f"that line so that it does not depend on the values of tensors"
    )
    error.__cause__ = failure
    return error


def _reason(failure: Exception | None) -> str:
    text = str(failure or "its sizes contradict each other").strip().split("\n", 1)[0]
    return f"{type(failure).__name__}: {text}" if failure else text


def _user_line(failure: Exception | None) -> str:
    """The innermost line outside of torch and of this package."""
    ours = __file__.rsplit("model", 1)[0]
    theirs = torch.__file__.rsplit("__init__", 1)[0]
    frames = traceback.extract_tb(failure.__traceback__) if failure else []
    for frame in reversed(frames):
        if not frame.filename.startswith((ours, theirs, "<")):
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
