"""The graph of a model: nodes, weights, signature."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pipepar.model.capture.signature import OutputTemplate, Signature
from pipepar.model.capture.size_limits import Restriction, Varies, sentence, varies
from pipepar.model.compat.torch_internals import OpOverload
from pipepar.model.weights.weight_source import WeightSpec


@dataclass(frozen=True, slots=True)
class Graph:
    """A model as a flat list of operations, without the values of its weights."""

    module: fx.GraphModule
    """The graph; weights are on meta under the model's own names, other tensors have values."""
    inputs: tuple[str, ...]
    """Names of the input tensors, in order."""
    outputs: tuple[str, ...]
    """Names of the nodes in the model's output, each once; constants are in `template`."""
    weights: Mapping[str, WeightSpec]
    """Parameters and persistent buffers, by name; tied ones appear under each name in the graph."""
    signature: Signature
    """Structure and requirements of the inputs."""
    template: OutputTemplate
    """Structure of the output."""
    example: tuple[torch.Tensor, ...]
    """The example's tensors on meta; costs are counted at these sizes."""
    device: torch.device
    """The device that the graph was captured for."""
    digest: str
    """The result of `digest_of`; the same in every process."""
    restriction: Restriction | None = None
    """Inputs with a size that tracing fixed although the model accepts others. If there are none,
    and no batch is dynamic: inputs with a fixed batch.

    Only dimensions 0 and 1 count. None if there are no such inputs, and for sequences of layers.
    """

    @property
    def varies(self) -> Varies:
        """Which of batch and length, dimensions 0 and 1, may differ from call to call."""
        return varies(self.signature.tensors)

    def limitation(self, name: str) -> str | None:
        """Return a sentence for the user about the `restriction`.

        Args:
            name: the name of the model in the sentence.

        Returns:
            The sentence; None without a restriction.
        """
        return sentence(name, self.signature, self.restriction)

    @property
    def nodes(self) -> list[fx.Node]:
        """Compute nodes in order; a position in a plan is an index into this list."""
        return [node for node in self.module.graph.nodes if node.op.startswith("call_")]

    def flatten_inputs(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Check a call of the model and return its tensors.

        Args:
            args: positional arguments, nested as in the example.
            kwargs: keyword arguments, in any order; nested dicts must have the example's key order.

        Returns:
            The tensors, in the order of `inputs`.

        Raises:
            InputError: the call differs from what the graph requires.
        """
        return self.signature.checked_tensors(args, kwargs or {})

    def unflatten_outputs(self, values: Sequence[Any]) -> Any:
        """Return the model's output for the values that the graph computed.

        Args:
            values: the values, in the order of `outputs`.

        Returns:
            The output, structured as the model returns it.
        """
        return self.template.unflatten(values)


def get_attribute(module: nn.Module, target: str, *default: Any) -> Any:
    """Return the attribute with a dotted name.

    Args:
        module: the module that the name starts from.
        target: the dotted name.
        default: the result if there is no such attribute; at most one value.

    Returns:
        A tensor, a module or another attribute.

    Raises:
        AttributeError: there is no such attribute and no default.
    """
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, *default)
    return value


def digest_of(
    module: fx.GraphModule, weights: Mapping[str, WeightSpec], device: torch.device
) -> str:
    """Return a digest of a graph that is the same in every process.

    It does not depend on the values of tensors.

    Args:
        module: the graph.
        weights: its weights.
        device: the device that it was captured for; only its type is used.

    Returns:
        SHA-256 in hexadecimal digits, of the device type, the nodes with their arguments, the
        names, shapes and dtypes of weights, and the shapes and dtypes of buffers and constants.
    """
    lines = [f"device {device.type}", *_described(module)]
    lines += [f"weight {n} {w.shape} {w.dtype} {w.aliases}" for n, w in sorted(weights.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(module: fx.GraphModule) -> list[str]:
    """Return lines on each node, and on the attribute or module that it refers to."""
    lines = []
    for node in module.graph.nodes:
        lines.append(f"{node.op} {node.name} {_target(node)} {node.args} {node.kwargs}")
        if node.op in ("get_attr", "call_module"):
            lines += described_state(get_attribute(module, str(node.target)))
    return lines


def _target(node: fx.Node) -> str:
    """Return the name of a node's target, the same in every process."""
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return f"{node.target.__module__}.{node.target.__name__}"


def described_state(state: Any) -> list[str]:
    """Return a description of a tensor, a module or another attribute, without values of tensors.

    Args:
        state: the attribute.

    Returns:
        Lines of text. For a tensor: shape and dtype. For a graph: its nodes. For another module:
        the class and extra_repr of each submodule, which may omit settings, and the names, shapes
        and dtypes in its state_dict. For anything else: class and repr.
    """
    if isinstance(state, torch.Tensor):
        return [f"tensor {tuple(state.shape)} {state.dtype}"]
    if isinstance(state, fx.GraphModule):
        return _described(state)
    if isinstance(state, nn.Module):
        parts = [
            f"module {name} {type(part).__qualname__} {part.extra_repr()}"
            for name, part in state.named_modules()
        ]
        return parts + [
            f"{name} {tuple(t.shape)} {t.dtype}"
            for name, t in state.state_dict(keep_vars=True).items()
        ]
    return [f"{type(state).__qualname__} {state!r}"]
