"""From a model to a plan: costs from the graph, cuts from the dynamic programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipepar.errors import PlanError
from pipepar.model.capture import capture
from pipepar.model.crossing import CutTable, cut_table
from pipepar.model.cut import parts
from pipepar.model.graph import Graph
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import partition
from pipepar.plan.plan import Plan, StagePlan
from pipepar.runtime.prediction import Prediction, Target, model_cost, predict


@dataclass(frozen=True, slots=True)
class Planning:
    """What is known of a model before it runs."""

    table: CutTable
    """Where it can be cut."""
    plan: Plan | None
    """How it is cut; None if nobody said into how many stages."""
    prediction: Prediction | None = None
    """What the plan would take; None if nobody said on which devices."""


def plan_model(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    stages: int | None,
    target: Target | None = None,
) -> Planning:
    """Capture a model, and plan its stages. *Local.*

    Args:
        module: the model in eval mode, parameters on meta.
        args: example of its positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.
        stages: how many, one for each rank; None for as many as the target has devices, or for no
            plan without one.
        target: the devices to plan for, of which the first are used; None for equal ones.

    Returns:
        Its legal cuts, the plan, and what that would take on the target.

    Raises:
        CaptureError: the model cannot be traced.
        PlanError: it cannot be cut into that many stages, or does not fit the devices.
    """
    if target is not None:
        stages = _stages_for(target, stages)
    graph = capture(module, args, kwargs)
    table = cut_table(graph)
    if target is not None and stages is not None:
        return _planned_for(graph, table, target, stages)
    return Planning(table, None if stages is None else _equal_stages(graph, table, stages))


def make_plan(graph: Graph, stages: int) -> Plan:
    """Divide a model into stages of about equal work that send little. *Local.*

    Args:
        graph: the captured model; costs are counted at its example's sizes.
        stages: how many stages, one for each rank.

    Returns:
        The plan; the same in every process that captured the same model.

    Raises:
        PlanError: the model cannot be cut into that many stages.
    """
    return _equal_stages(graph, cut_table(graph), stages)


def _equal_stages(graph: Graph, table: CutTable, stages: int) -> Plan:
    """The plan for devices that are alike, behind links that cost nothing."""
    layers = [LayerCost(w, crossing=c) for w, c in zip(table.costs, table.crossing, strict=True)]
    cuts = partition(layers, [DeviceCost(1.0)] * stages, [LinkCost()] * (stages - 1)).cuts
    return _plan(graph, table, cuts)


def _stages_for(target: Target, stages: int | None) -> int:
    devices = len(target.cluster.devices)
    if stages is not None and stages > devices:
        raise PlanError(
            f"found {stages} stages for {devices} devices, expected a device for each stage; give "
            "fewer stages, or a cluster with more devices"
        )
    return stages or devices


def _planned_for(graph: Graph, table: CutTable, target: Target, stages: int) -> Planning:
    cluster = target.cluster
    cost = model_cost(graph, table, target.micro_batch)
    links = [cluster.link(stage, stage + 1) for stage in range(stages - 1)]
    found = partition(cost.layers, cluster.devices[:stages], links, depth=target.depth)
    plan = _plan(graph, table, found.cuts)
    return Planning(table, plan, predict(plan, cost, target))


def _plan(graph: Graph, table: CutTable, cuts: Sequence[int]) -> Plan:
    return Plan(
        model=graph.digest,
        inputs=graph.inputs,
        outputs=graph.outputs,
        stages=tuple(
            StagePlan(
                index=index,
                begin=part.begin,
                end=part.end,
                inputs=part.inputs,
                outputs=part.outputs,
                weights=part.weights,
                weight_bytes=part.weight_bytes,
                flops=sum(table.flops[part.begin : part.end]),
            )
            for index, part in enumerate(parts(graph, cuts))
        ),
    )
