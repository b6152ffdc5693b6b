"""The one graph that every model becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pipepar.model.capture.signature import OutputTemplate, Signature, Value
from pipepar.model.capture.size_limits import Restriction, Varies, sentence, varies
from pipepar.model.compat.torch_internals import OpOverload
from pipepar.model.weights.weight_source import WeightSpec


@dataclass(frozen=True, slots=True)
class Graph:
    """A model as a flat list of operations, before any weight is read."""

    module: fx.GraphModule
    """The graph; weights are on meta under the model's own names, other tensors are real."""
    inputs: tuple[str, ...]
    """Names of the tensors it takes, in order."""
    outputs: tuple[str, ...]
    """Names of the values that the model's output is made of, each once."""
    weights: Mapping[str, WeightSpec]
    """Its parameters and persistent buffers, by every name in the graph."""
    signature: Signature
    """What a call of the model looks like."""
    template: OutputTemplate
    """What the model's output looks like."""
    example: tuple[torch.Tensor, ...]
    """The example's tensors on meta: the sizes that costs are counted for."""
    device: torch.device
    """The device that the graph was captured for."""
    digest: str
    """SHA-256 of the nodes and of the state's shapes; equal captures have equal digests."""
    restriction: Restriction | None = None
    """Sizes that the graph requires though the model does not; None for most models."""

    @property
    def varies(self) -> Varies:
        """The sizes that may differ from call to call."""
        return varies(self.signature.tensors)

    def limitation(self, name: str) -> str | None:
        """What to tell the user about the sizes that the graph holds for.

        Args:
            name: what to call the model.

        Returns:
            One sentence; None where the graph takes every size that the model takes.
        """
        return sentence(name, self.signature, self.restriction)

    @property
    def nodes(self) -> list[fx.Node]:
        """The compute nodes; a position in a plan is an index into this list."""
        return [node for node in self.module.graph.nodes if node.op.startswith("call_")]

    def flatten_inputs(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Value, ...]:
        """Check a call of the model and take its tensors.

        Args:
            args: positional arguments, nested as in the example.
            kwargs: keyword arguments.

        Returns:
            The tensors, in the order of `inputs`.

        Raises:
            InputError: the call does not fit what was captured.
        """
        return self.signature.flatten(args, kwargs or {})

    def unflatten_outputs(self, values: Sequence[Any]) -> Any:
        """Make the model's own output from values.

        Args:
            values: in the order of `outputs`.

        Returns:
            What the model itself would return.
        """
        return self.template.unflatten(values)


def get_attribute(module: nn.Module, target: str, *default: Any) -> Any:
    """What a dotted name stands for.

    Args:
        module: where the name starts.
        target: the dotted name.
        default: what to return if there is nothing of that name; without one that is an error.

    Returns:
        A tensor, a module or another attribute.
    """
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part, *default)
    return value


def digest_of(
    module: fx.GraphModule, weights: Mapping[str, WeightSpec], device: torch.device
) -> str:
    """A number for a graph that is the same in every process.

    Args:
        module: the graph.
        weights: its weights.
        device: the device it was captured for.

    Returns:
        SHA-256, in hexadecimal digits.
    """
    lines = [f"device {device.type}", *_described(module)]
    lines += [f"weight {n} {w.shape} {w.dtype} {w.aliases}" for n, w in sorted(weights.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(module: fx.GraphModule) -> list[str]:
    lines = []
    for node in module.graph.nodes:
        lines.append(f"{node.op} {node.name} {_target(node)} {node.args} {node.kwargs}")
        if node.op in ("get_attr", "call_module"):
            lines += described_state(get_attribute(module, str(node.target)))
    return lines


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return f"{node.target.__module__}.{node.target.__name__}"


def described_state(state: Any) -> list[str]:
    """A tensor's, module's or other attribute's shapes and settings, in words."""
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
