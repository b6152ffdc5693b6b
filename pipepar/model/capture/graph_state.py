"""Tensors that a graph refers to: weights on meta, all others with their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from pipepar.model.capture.graph import get_attribute
from pipepar.model.fake_tensors import without_values
from pipepar.model.module_tensors import named_weights
from pipepar.model.weights.weight_source import WeightSpec


def weight_specs(module: nn.Module, names: Sequence[str]) -> dict[str, WeightSpec]:
    """Return the specs of the weights in a graph.

    Args:
        module: the model.
        names: names that the graph refers to; names of other objects than weights are skipped.

    Returns:
        The spec of each weight by name; the names of a tied weight have equal specs.
    """
    weights = named_weights(module)
    tied: dict[int, list[str]] = {}
    for name, tensor in weights.items():
        tied.setdefault(id(tensor), []).append(name)
    specs = {}
    for name in names:
        if name in weights:
            tensor = weights[name]
            first, *others = tied[id(tensor)]
            specs[name] = WeightSpec(first, tuple(others), tuple(tensor.shape), tensor.dtype)
    return specs


def graph_state(
    module: nn.Module, exported: fx.GraphModule, targets: Sequence[str], wrapper: str
) -> dict[str, Any]:
    """Return the object that each get_attr node of a graph refers to.

    Args:
        module: the model, with its own tensors.
        exported: the module from torch.export, with lifted constants and bodies of regions.
        targets: the targets of the get_attr nodes.
        wrapper: the prefix of the model's own tensors in `exported`.

    Returns:
        For each target a weight on meta, a buffer or constant with its values, or the body of a
        region.
    """
    weights = named_weights(module)
    buffers = dict(module.named_buffers(remove_duplicate=False))
    state: dict[str, Any] = {}
    for target in targets:
        if target in weights:
            state[target] = without_values(weights[target])
        elif target in buffers:
            state[target] = buffers[target].detach()
        else:
            own = get_attribute(exported, wrapper + target, None)
            state[target] = get_attribute(exported, target) if own is None else own
    return state
