"""The module of one stage, on its device and with its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from pipepar.errors import PlanError, WeightsError
from pipepar.model.capture.graph import Graph, get_attribute
from pipepar.model.compat.torch_internals import FakeTensor
from pipepar.model.module_tensors import named_tensors
from pipepar.model.split.cut import extract
from pipepar.model.weights.weight_source import Weights, WeightSpec
from pipepar.plan.plan import Plan, StagePlan


@dataclass(frozen=True, slots=True)
class BareStage:
    """One stage of a model without its weights; made by `BareStage.cut`."""

    module: fx.GraphModule
    """The stage's graph. Its weights are on meta, its other tensors on the stage's device."""
    plan: StagePlan
    """The stage's part of the plan."""
    weights: tuple[WeightSpec, ...]
    """The weights of the stage, each tensor once."""
    names: Mapping[str, Sequence[str]]
    """The names of each weight in the module; several if it is tied."""
    device: torch.device
    """The device that computes the stage."""

    @staticmethod
    def cut(graph: Graph, plan: Plan, index: int, device: torch.device | str = "cpu") -> BareStage:
        """Cut a stage out of the model.

        Args:
            graph: the captured model.
            plan: a plan made for this graph.
            index: the stage, 0-based.
            device: the device that computes it, such as "cpu" or "cuda:1".

        Returns:
            The stage, with its weights on meta.

        Raises:
            PlanError: the plan was made for another model, or has no such stage.
        """
        if plan.model != graph.digest:
            raise PlanError(
                f"the plan was made for model {plan.model[:12]}, found model {graph.digest[:12]}; "
                f"make a new plan for this model, torch version and kind of device"
            )
        if not 0 <= index < len(plan.stages):
            raise PlanError(
                f"found stage {index}, expected 0 to {len(plan.stages) - 1}; "
                f"start {len(plan.stages)} ranks for this plan"
            )
        device = torch.device(device)
        module = extract(graph, plan.stages[index])
        _redirect(module, graph.device, device)
        names: dict[str, list[str]] = {}
        for name, tensor in named_tensors(module).items():
            if name in graph.weights:
                names.setdefault(graph.weights[name].name, []).append(name)
            elif not tensor.is_meta:
                _assign(module, name, tensor.to(device))
        specs = tuple(weights_of(graph, plan.stages[index]))
        return BareStage(module, plan.stages[index], specs, names, device)

    def load(self, weights: Weights) -> Stage:
        """Read the stage's weights, one tensor at a time, and no others.

        Args:
            weights: the source of the weights.

        Returns:
            The stage, ready to compute.

        Raises:
            WeightsError: a weight is missing or has another shape or dtype, a file is damaged, or
                another tensor of the stage has no values.
        """
        with closing(weights.read(self.weights)) as values:
            for name, value in values:
                first, *ties = self.names[name]
                old = get_attribute(self.module, first)
                _assign(self.module, first, _like(old, value.to(self.device)))
                for tie in ties:
                    _assign(self.module, tie, get_attribute(self.module, first))
        _check_values(self.module, self.plan.index)
        return Stage(self.module, self.plan)


class Stage:
    """One stage of a model, ready to compute; made by `Stage.load`.

    Args:
        module: the stage's graph; every tensor has values.
        plan: the stage's part of the plan.
    """

    def __init__(self, module: fx.GraphModule, plan: StagePlan) -> None:
        self.index = plan.index
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self.weight_bytes = plan.weight_bytes
        self._module = module

    @staticmethod
    def load(
        graph: Graph,
        plan: Plan,
        index: int,
        weights: Weights,
        device: torch.device | str = "cpu",
    ) -> Stage:
        """Cut a stage out of the model and read its weights.

        For arguments and errors see `BareStage.cut` and `BareStage.load`.
        """
        return BareStage.cut(graph, plan, index, device).load(weights)

    def __call__(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Compute one micro-batch.

        Args:
            values: in the order of `inputs`, on the stage's device; not modified.

        Returns:
            Values in the order of `outputs`.
        """
        # Not inference_mode: users expect ordinary tensors, which may enter autograd later.
        with torch.no_grad():
            # Not __call__: the graph has no hooks, and on errors fx would print its code to stderr.
            results: tuple[Any, ...] = self._module.forward(*values)
        return results


def _redirect(module: fx.GraphModule, captured: torch.device, device: torch.device) -> None:
    """Make the graph create its tensors on the stage's device instead of the captured one."""

    def redirect(value: Any) -> Any:
        same = isinstance(value, torch.device) and value.type == captured.type
        return device if same else value

    for node in module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, redirect)
        node.kwargs = fx.node.map_aggregate(node.kwargs, redirect)
        if node.op == "get_attr" and isinstance(
            inner := get_attribute(module, str(node.target)), fx.GraphModule
        ):  # the body of a branch or a loop; copied, because other stages may share it
            inner = copy.deepcopy(inner)
            _redirect(inner, captured, device)
            _assign(module, str(node.target), inner)
    module.recompile()


def weights_of(graph: Graph, plan: StagePlan) -> list[WeightSpec]:
    """Return the specs of a stage's weights, each tensor once."""
    specs = {spec.name: spec for spec in graph.weights.values()}
    return [specs[name] for name in plan.weights]


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return `new` with the strides and `requires_grad` of `old`: kernels are chosen by both."""
    if new.stride() != old.stride():
        new = torch.empty_like(old, dtype=new.dtype, device=new.device).copy_(new)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _assign(module: nn.Module, name: str, value: torch.Tensor | nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, value)


def _check_values(module: nn.Module, index: int) -> None:
    """Raise an error if a tensor of the stage has no values."""
    for path, part in module.named_modules():
        for name, value in {**part.__dict__, **part._parameters, **part._buffers}.items():
            if isinstance(value, FakeTensor) or (isinstance(value, torch.Tensor) and value.is_meta):
                raise WeightsError(
                    f"{path}.{name} of stage {index} has no values, expected values read from "
                    f"the checkpoint or computed by the model; build the model outside of "
                    f"torch.device('meta'), or register {name} as a parameter"
                )
