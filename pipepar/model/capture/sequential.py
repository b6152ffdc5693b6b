"""A plain nn.Sequential needs no tracing: its children are the graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from pipepar.errors import CaptureError, InputError
from pipepar.model.aliases import memory_of
from pipepar.model.capture.containers import flatten, nth_leaf, nth_value
from pipepar.model.capture.flat_call import FlatCall, constant, positional
from pipepar.model.capture.graph import Graph, digest_of
from pipepar.model.capture.graph_state import weight_specs
from pipepar.model.capture.rewrite import protect_inputs
from pipepar.model.capture.signature import ConstantInput, OutputTemplate, Signature, TensorInput
from pipepar.model.compat.torch_internals import FakeTensorMode
from pipepar.model.fake_tensors import fake_tensor, faked
from pipepar.model.module_tensors import named_weights
from pipepar.model.to_meta import to_meta

# What a layer makes that does not run without values.
_UNKNOWN: Final = object()


class Layers(nn.Sequential):
    """Layers in order; where one returns a tuple, the next takes its values as arguments.

    A plain nn.Sequential hands a tuple on as a whole.
    """

    def forward(self, *values: Any) -> Any:
        """Run all layers.

        Args:
            values: the first layer's positional arguments.

        Returns:
            What the last layer returns.
        """
        result: Any = values
        for layer in self:
            result = layer(*result) if isinstance(result, tuple) else layer(result)
        return result


def is_sequence(call: FlatCall) -> bool:
    """Whether a call needs no tracing: plain layers, called with nothing but tensors.

    Args:
        call: the model behind a plain call.

    Returns:
        True for an nn.Sequential that is given one tensor and for Layers given any number.
    """
    given = len(call.leaves)
    if call.structure != flatten(((0,) * given, {}))[1] or not len(call.tensors) == given > 0:
        return False
    return _is_plain(call.model, Layers) or (_is_plain(call.model, nn.Sequential) and given == 1)


def capture_sequential(call: FlatCall, device: torch.device) -> Graph:
    """Make a graph with one node for each child, without tracing.

    Args:
        call: a sequence of modules, as `is_sequence` tells; nested plain sequences are opened.
        device: the device the graph is for.

    Returns:
        The graph. All sizes are free: nothing is known about what the children require.

    Raises:
        CaptureError: a child takes another number of values than the one before it gives.
    """
    shell = to_meta(call.model)
    examples = tuple(call.tensors.values())
    chain = _Chain(shell, device)
    inputs, result = chain.build(examples)
    graph = chain.graph
    values, leaves, structure = _taken_apart(graph, result, chain.made.get(result))
    graph.output(tuple(values))
    protect_inputs(graph)
    graph.lint()
    captured = fx.GraphModule(shell, graph)
    weights = weight_specs(shell, list(named_weights(shell)))
    given = zip(inputs, examples, strict=True)
    taken = tuple(TensorInput(node.name, x.dtype, None, x.dim()) for node, x in given)
    return Graph(
        module=captured,
        inputs=tuple(node.name for node in inputs),
        outputs=tuple(node.name for node in values),
        weights=weights,
        signature=Signature(call.structure, (), taken),
        template=OutputTemplate(structure, leaves),
        example=tuple(x.detach().to("meta") for x in examples),
        device=device,
        digest=digest_of(captured, weights, device),
    )


class _Chain:
    """Links layers into a graph, and runs them without memory to learn what each makes."""

    def __init__(self, shell: nn.Module, device: torch.device) -> None:
        self.graph = fx.Graph()
        self.made: dict[fx.Node, Any] = {}
        self._shell, self._device = shell, device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def build(self, examples: Sequence[torch.Tensor]) -> tuple[list[fx.Node], fx.Node]:
        """Nodes for the inputs and for the last layer's result."""
        layers = list(_children(self._shell))
        names = ["x"] if len(examples) == 1 else positional(layers[0][1], len(examples))
        inputs = [self.graph.placeholder(name) for name in names]
        for node, example in zip(inputs, examples, strict=True):
            self._note(node, fake_tensor(example.detach(), self._mode, self._device))
        values = inputs
        with faked(self._shell, self._mode, self._device), self._mode, torch.no_grad():
            for index, (name, layer, unpacks) in enumerate(layers):
                _check_count(name, layer, len(values))
                node = self.graph.call_module(name, tuple(values))
                self._try_out(node, layer)
                values = self._unpacked(node, layers[index + 1][1]) if unpacks else [node]
        return inputs, node

    def _note(self, node: fx.Node, made: Any) -> None:
        """Keep a value; all but one tensor or number is a tuple to who looks for cuts."""
        self.made[node] = made
        known = None if made is _UNKNOWN else made
        node.meta["val"] = known if _is_single(known) else tuple(pytree.tree_leaves(made))

    def _try_out(self, node: fx.Node, layer: nn.Module) -> None:
        """Run a layer, to learn what it makes and what it writes into."""
        given = [self.made[argument] for argument in node.all_input_nodes]
        _check_fit(str(node.target), layer, given[0])
        before = _versions(given)
        made = _run(layer, [self.made[argument] for argument in _arguments(node)])
        self._note(node, made)
        node.meta["aliases_input"] = made is _UNKNOWN or bool(memory_of(made) & memory_of(given))
        node.meta["writes_input"] = any(
            getattr(part, "inplace", False) for part in layer.modules()
        ) or (before != _versions(given))

    def _unpacked(self, node: fx.Node, following: nn.Module) -> list[fx.Node]:
        """The values that the following layer is called with."""
        made = self.made[node]
        if made is _UNKNOWN:
            parts: tuple[Any, ...] = (_UNKNOWN,) * max(_needed(following), 1)
            node.meta["val"] = parts  # a tuple, as far as anyone knows
        elif isinstance(made, tuple):
            parts = made
        else:
            return [node]
        count = len(parts)
        values = [self.graph.call_function(nth_value, (node, i, count)) for i in range(count)]
        for value, part in zip(values, parts, strict=True):
            value.meta.update(aliases_input=True, module=str(node.target))
            self._note(value, part)
        return values


def _check_fit(name: str, layer: nn.Module, given: Any) -> None:
    """Refuse what plain torch layers refuse; what others take is known only when they run."""
    if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) or layer._forward_pre_hooks:
        return
    weight = layer.weight
    if not isinstance(given, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return
    if given.dtype != weight.dtype:
        wanted = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"layer {name}, {layer}, computes in {wanted}, found {given.dtype} before it; convert "
            f"the input, with array.astype({wanted!r}) or tensor.to({weight.dtype})"
        )
    if type(layer) is nn.Linear and given.dim() and given.shape[-1] != layer.in_features:
        raise InputError(
            f"layer {name}, {layer}, takes {layer.in_features} features, found shape "
            f"{tuple(given.shape)} before it; give an input of that size"
        )


def _is_plain(module: nn.Module, kind: type[nn.Sequential]) -> bool:
    """Whether a module is nothing but its children, one after another."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and not hooked and len(module) > 0


def _children(
    module: nn.Module, prefix: str = "", unpacks_at_end: bool = False
) -> Iterator[tuple[str, nn.Module, bool]]:
    """Children in order, by name, and whether a tuple is unpacked for the one that follows.

    A module that stands twice in the sequence comes twice.
    """
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    for name, child in children:
        last = name == children[-1][0]
        unpacks = unpacks_at_end if last else type(module) is Layers
        if _is_plain(child, nn.Sequential):
            yield from _children(child, f"{prefix}{name}.", unpacks)
        else:
            yield f"{prefix}{name}", child, unpacks


def _taken_apart(
    graph: fx.Graph, node: fx.Node, made: Any
) -> tuple[list[fx.Node], tuple[int | ConstantInput, ...], pytree.TreeSpec]:
    """The tensors of a result, what each leaf of it is, and how they nest."""
    leaves, structure = flatten(made)
    if _is_single(made):
        return [node], (0,), structure
    values: list[fx.Node] = []
    places: list[int | ConstantInput] = []
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            places.append(constant(leaf))
            continue
        places.append(len(values))
        values.append(graph.call_function(nth_leaf, (node, index)))
        values[-1].meta.update(val=leaf, aliases_input=True, module=str(node.target))
    return values, tuple(places), structure


def _is_single(made: Any) -> bool:
    """Whether a layer made one value, which can cross."""
    return pytree.tree_structure(made).is_leaf()


def _arguments(node: fx.Node) -> list[fx.Node]:
    return [argument for argument in node.args if isinstance(argument, fx.Node)]


def _check_count(name: str, layer: nn.Module, count: int) -> None:
    if layer._forward_pre_hooks:
        return  # they may give it other arguments
    signature = inspect.signature(layer.forward)
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise CaptureError(
            f"layer {name}, a {type(layer).__name__}, is given {count} value{'s' * (count != 1)}, "
            f"expected what its forward takes, {signature} ({error}); let the layer before return "
            f"them in a tuple, and give the layers as pipepar.Pipeline(layers=[...])"
        ) from error


def _needed(layer: nn.Module) -> int:
    """How many positional arguments a layer cannot do without."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(layer.forward).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def _run(child: nn.Module, given: list[Any]) -> Any:
    """What the child makes of fakes, if it does not need real values."""
    if any(value is _UNKNOWN for value in given):
        return _UNKNOWN
    try:
        return child(*given)
    except Exception:
        return _UNKNOWN


def _versions(values: object) -> list[int]:
    """Counts of the writes that tensors have seen."""
    leaves = pytree.tree_leaves(values)
    return [leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor)]
