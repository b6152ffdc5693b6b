"""A cut module on a device, with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from pipepar.errors import PlanError, WeightsError
from pipepar.model.cut import extract
from pipepar.model.graph import Graph, get_attribute
from pipepar.model.weights import Weights, WeightSpec
from pipepar.plan.plan import Plan, StagePlan


class Stage:
    """One stage of a model, ready to compute; made by `Stage.load`.

    Args:
        module: the stage's graph, every tensor with its values.
        plan: what the plan says of this stage.
    """

    def __init__(self, module: fx.GraphModule, plan: StagePlan) -> None:
        self.index = plan.index
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self.weight_bytes = plan.weight_bytes
        self._module = module

    @staticmethod
    def load(graph: Graph, plan: Plan, index: int, weights: Weights, device: str = "cpu") -> Stage:
        """Cut a stage out of the model and read its weights, and no others. *Local.*

        Args:
            graph: the captured model.
            plan: a plan made for this graph.
            index: which stage, from 0.
            weights: where the weights lie.
            device: where the stage computes, such as "cpu" or "cuda:1".

        Returns:
            The stage.

        Raises:
            PlanError: the plan was made for another model, or has no such stage.
            WeightsError: a weight is missing or does not fit, or a file is damaged.
        """
        if plan.model != graph.digest:
            raise PlanError(
                f"the plan was made for model {plan.model[:12]}, found model {graph.digest[:12]}; "
                f"plan again for this model, torch version and kind of device"
            )
        if not 0 <= index < len(plan.stages):
            raise PlanError(
                f"found stage {index}, expected 0 to {len(plan.stages) - 1}; "
                f"start {len(plan.stages)} ranks for this plan"
            )
        place = torch.device(device)
        module = extract(graph, plan.stages[index])
        _redirect(module.graph, graph.device, place)
        module.recompile()
        _fill(module, graph, plan.stages[index], weights, place)
        _check_values(module, index)
        return Stage(module, plan.stages[index])

    def __call__(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Compute one microbatch. *Local.*

        Args:
            values: in the order of `inputs`, on the stage's device; not modified.

        Returns:
            Values in the order of `outputs`.
        """
        # Not inference_mode: the model's results must be ordinary tensors, as without a pipeline.
        with torch.no_grad():
            results: tuple[Any, ...] = self._module(*values)
        return results


def _redirect(graph: fx.Graph, captured: torch.device, place: torch.device) -> None:
    """What the model creates while it computes goes to the stage's device."""

    def redirect(value: Any) -> Any:
        same = isinstance(value, torch.device) and value.type == captured.type
        return place if same else value

    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, redirect)
        node.kwargs = fx.node.map_aggregate(node.kwargs, redirect)


def _fill(
    module: nn.Module, graph: Graph, plan: StagePlan, weights: Weights, place: torch.device
) -> None:
    """Give every tensor of a stage its values, one after another."""
    names: dict[str, list[str]] = {}
    for name, tensor in _tensors(module).items():
        if name in graph.weights:
            names.setdefault(graph.weights[name].name, []).append(name)
        elif not tensor.is_meta:
            _assign(module, name, tensor.to(place))
    with closing(weights.read(weights_of(graph, plan))) as values:
        for own, value in values:
            first, *ties = names[own]
            _assign(module, first, _like(get_attribute(module, first), value.to(place)))
            for tie in ties:
                _assign(module, tie, get_attribute(module, first))


def weights_of(graph: Graph, plan: StagePlan) -> list[WeightSpec]:
    """What a stage owns, each tensor once. *Local.*"""
    specs = {spec.name: spec for spec in graph.weights.values()}
    return [specs[name] for name in plan.weights]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The new values in the old one's strides and of its kind: kernels are chosen by both."""
    if new.stride() != old.stride():
        new = torch.empty_like(old, dtype=new.dtype, device=new.device).copy_(new)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _assign(module: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, value)


def _check_values(module: nn.Module, index: int) -> None:
    for path, part in module.named_modules():
        for name, value in {**part.__dict__, **part._parameters, **part._buffers}.items():
            if isinstance(value, FakeTensor) or (isinstance(value, torch.Tensor) and value.is_meta):
                raise WeightsError(
                    f"{path}.{name} of stage {index} has no values, expected a tensor read from "
                    f"the weights or built by the model; build the model outside of "
                    f"torch.device('meta'), or register {name} as a parameter"
                )
