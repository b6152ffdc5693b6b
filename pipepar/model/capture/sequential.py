"""Graphs of nn.Sequential and Layers: one node for each layer, without tracing."""

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
from pipepar.model.capture.signature import Constant, OutputTemplate, Signature, TensorInput
from pipepar.model.compat.torch_internals import FakeTensorMode
from pipepar.model.fake_tensors import fake_tensor, faked
from pipepar.model.module_tensors import named_weights
from pipepar.model.to_meta import to_meta

# The result of a layer that does not run on fake tensors.
_UNKNOWN: Final = object()


class Layers(nn.Sequential):
    """Layers in order; if one returns a tuple, the next is called with its values as arguments.

    A plain nn.Sequential passes the tuple as one argument.
    """

    def forward(self, *values: Any) -> Any:
        """Run all layers.

        Args:
            values: the positional arguments of the first layer.

        Returns:
            The result of the last layer.
        """
        result: Any = values
        for layer in self:
            result = layer(*result) if isinstance(result, tuple) else layer(result)
        return result


def is_sequence(call: FlatCall) -> bool:
    """Whether a call needs no tracing: plain layers with positional arguments, all tensors.

    Args:
        call: the model and its example.

    Returns:
        True for an nn.Sequential with one tensor, and for Layers with one or more. False for a
        subclass of these, for a module with forward hooks, and for one without layers.
    """
    count = len(call.leaves)
    if call.structure != flatten(((0,) * count, {}))[1] or not len(call.tensors) == count > 0:
        return False
    return _is_plain(call.model, Layers) or (_is_plain(call.model, nn.Sequential) and count == 1)


def capture_sequential(call: FlatCall, device: torch.device) -> Graph:
    """Return a graph with one node for each layer, without tracing.

    Additional nodes extract the values of tuples, and the tensors of the output.

    Args:
        call: a call for which `is_sequence` is true; each nested plain nn.Sequential is replaced by
            its layers.
        device: the device the graph is for.

    Returns:
        The graph. All sizes are dynamic, because the requirements of the layers are unknown.

    Raises:
        CaptureError: a layer does not take as many values as the one before it returns, or the
            output contains an unsupported object.
        InputError: the input of a linear or convolution layer has the wrong dtype, the input of a
            linear layer has the wrong size, or the model cannot be copied.
    """
    meta_model = to_meta(call.model)
    examples = tuple(call.tensors.values())
    chain = _Chain(meta_model, device)
    inputs, result = chain.build(examples)
    graph = chain.graph
    values, leaves, structure = _output_leaves(graph, result, chain.results[result])
    graph.output(tuple(values))
    protect_inputs(graph)
    graph.lint()
    captured = fx.GraphModule(meta_model, graph)
    weights = weight_specs(meta_model, list(named_weights(meta_model)))
    tensors = tuple(
        TensorInput(node.name, x.dtype, None, x.dim())
        for node, x in zip(inputs, examples, strict=True)
    )
    return Graph(
        module=captured,
        inputs=tuple(node.name for node in inputs),
        outputs=tuple(node.name for node in values),
        weights=weights,
        signature=Signature(call.structure, (), tensors),
        template=OutputTemplate(structure, leaves),
        example=tuple(x.detach().to("meta") for x in examples),
        device=device,
        digest=digest_of(captured, weights, device),
    )


class _Chain:
    """Builds the graph of layers, and runs them on fake tensors to find the result of each."""

    def __init__(self, meta_model: nn.Module, device: torch.device) -> None:
        self.graph = fx.Graph()
        self.results: dict[fx.Node, Any] = {}
        self._model, self._device = meta_model, device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def build(self, examples: Sequence[torch.Tensor]) -> tuple[list[fx.Node], fx.Node]:
        """Add a node for each input and layer; return the input nodes and the last layer's node.

        Raises CaptureError or InputError if a layer does not accept its arguments.
        """
        layers = list(_children(self._model))
        names = ["x"] if len(examples) == 1 else positional(layers[0][1], len(examples))
        inputs = [self.graph.placeholder(name) for name in names]
        for node, example in zip(inputs, examples, strict=True):
            self._record(node, fake_tensor(example.detach(), self._mode, self._device))
        values = inputs
        with faked(self._model, self._mode, self._device), self._mode, torch.no_grad():
            for index, (name, layer, unpacks) in enumerate(layers):
                _check_count(name, layer, len(values))
                node = self.graph.call_module(name, tuple(values))
                self._run_layer(node, layer)
                values = self._unpack(node, layers[index + 1][1]) if unpacks else [node]
        return inputs, node

    def _record(self, node: fx.Node, result: Any) -> None:
        """Store a node's result, and its `val`, which is None for an unknown result.

        For a nested result `val` is a tuple, which no cut may cross.
        """
        self.results[node] = result
        known = None if result is _UNKNOWN else result
        node.meta["val"] = known if _is_single(known) else tuple(pytree.tree_leaves(result))

    def _run_layer(self, node: fx.Node, layer: nn.Module) -> None:
        """Run a layer, and record its result and whether it may alias or write its arguments.

        An unknown result may alias. A layer writes if a module in it has `inplace` set, or if the
        run increments the version counter of an argument.
        """
        arguments = [self.results[argument] for argument in node.all_input_nodes]
        _check_input(str(node.target), layer, arguments[0])
        before = _versions(arguments)
        result = _run(layer, [self.results[x] for x in node.args if isinstance(x, fx.Node)])
        self._record(node, result)
        node.meta["aliases_input"] = result is _UNKNOWN or bool(
            memory_of(result) & memory_of(arguments)
        )
        node.meta["writes_input"] = any(
            getattr(part, "inplace", False) for part in layer.modules()
        ) or (before != _versions(arguments))

    def _unpack(self, node: fx.Node, following: nn.Module) -> list[fx.Node]:
        """Return the nodes of the arguments of the following layer; add them for a tuple.

        An unknown result counts as a tuple of as many values as that layer requires, at least 1.
        """
        result = self.results[node]
        if result is _UNKNOWN:
            parts: tuple[Any, ...] = (_UNKNOWN,) * max(_required(following), 1)
            node.meta["val"] = parts  # it may be a tuple, so no cut is legal
        elif isinstance(result, tuple):
            parts = result
        else:
            return [node]
        count = len(parts)
        values = [self.graph.call_function(nth_value, (node, i, count)) for i in range(count)]
        for value, part in zip(values, parts, strict=True):
            value.meta.update(aliases_input=True, module=str(node.target))
            self._record(value, part)
        return values


def _check_input(name: str, layer: nn.Module, value: Any) -> None:
    """Raise InputError if the input of a linear or convolution layer has the wrong dtype.

    Also if the input of a linear layer has the wrong size. The requirements of other layers, and of
    layers with a pre-hook, are unknown.
    """
    if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) or layer._forward_pre_hooks:
        return
    weight = layer.weight
    if not isinstance(value, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return
    if value.dtype != weight.dtype:
        wanted = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"layer {name}, {layer}, computes in {wanted}, found {value.dtype} before it; convert "
            f"the input, with array.astype({wanted!r}) or tensor.to({weight.dtype})"
        )
    if type(layer) is nn.Linear and value.dim() and value.shape[-1] != layer.in_features:
        raise InputError(
            f"layer {name}, {layer}, takes {layer.in_features} features, found shape "
            f"{tuple(value.shape)} before it; give an input with {layer.in_features} features"
        )


def _is_plain(module: nn.Module, kind: type[nn.Sequential]) -> bool:
    """Whether a module has exactly this class, at least one child, and no forward hooks."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) is kind and not hooked and len(module) > 0


def _children(
    module: nn.Module, prefix: str = "", unpacks_at_end: bool = False
) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield for each layer: name, module, and whether a tuple is unpacked for the next layer.

    Nested plain nn.Sequential are replaced by their layers. A module that occurs twice in the
    sequence is yielded twice.
    """
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    for name, child in children:
        last = name == children[-1][0]
        unpacks = unpacks_at_end if last else type(module) is Layers
        if _is_plain(child, nn.Sequential):
            yield from _children(child, f"{prefix}{name}.", unpacks)
        else:
            yield f"{prefix}{name}", child, unpacks


def _output_leaves(
    graph: fx.Graph, node: fx.Node, result: Any
) -> tuple[list[fx.Node], tuple[int | Constant, ...], pytree.TreeSpec]:
    """Return output nodes, an index or constant for each leaf, and the structure.

    For each tensor of a nested result, a node that extracts it is added to the graph.
    """
    leaves, structure = flatten(result)
    if _is_single(result):
        return [node], (0,), structure
    values: list[fx.Node] = []
    indices: list[int | Constant] = []
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            indices.append(constant(leaf))
            continue
        indices.append(len(values))
        values.append(graph.call_function(nth_leaf, (node, index)))
        values[-1].meta.update(val=leaf, aliases_input=True, module=str(node.target))
    return values, tuple(indices), structure


def _is_single(result: Any) -> bool:
    """Whether a layer's result is one value, not nested, so that it can cross a cut."""
    return pytree.tree_structure(result).is_leaf()


def _check_count(name: str, layer: nn.Module, count: int) -> None:
    """Raise CaptureError if a layer without pre-hooks does not take `count` arguments."""
    if layer._forward_pre_hooks:
        return  # the hooks may change the arguments
    signature = inspect.signature(layer.forward)
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise CaptureError(
            f"layer {name}, a {type(layer).__name__}, is given {count} value{'s' * (count != 1)}, "
            f"expected the arguments of its forward, {signature} ({error}); let the layer before "
            f"return them in a tuple, and pass the layers as pipepar.Pipeline(layers=[...])"
        ) from error


def _required(layer: nn.Module) -> int:
    """Return the number of positional arguments that a layer requires."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(layer.forward).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def _run(child: nn.Module, arguments: list[Any]) -> Any:
    """Return a layer's result; `_UNKNOWN` if an argument is unknown or the layer raises."""
    if any(argument is _UNKNOWN for argument in arguments):
        return _UNKNOWN
    try:
        return child(*arguments)
    except Exception:
        return _UNKNOWN


def _versions(values: object) -> list[int]:
    """Return the version counter of each tensor; a write in place increments it."""
    leaves = pytree.tree_leaves(values)
    return [leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor)]
