"""A plan from counted costs, without running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from pipepar.errors import PlanError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable, cut_table
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.hardware import Cluster, DeviceSubset, Hardware
from pipepar.plan.partition import partition
from pipepar.plan.plan import Plan
from pipepar.planner.advice import advice
from pipepar.planner.choice import Choice, choose
from pipepar.planner.plan_from_cuts import plan_of
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import model_cost


@dataclass(frozen=True, slots=True)
class OfflinePlan:
    """The legal cuts of a model, and optionally a plan with its prediction."""

    table: CutTable
    """The legal cuts and counted costs."""
    plan: Plan | None = None
    """The plan; None if the number of stages is unknown."""
    choice: Choice | None = None
    """The plan with its prediction; None if the devices are unknown."""
    advice: str | None = None
    """The advice to use replicas instead; None if they are not known to be faster."""


def plan_model(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    stages: int | None,
    cluster: Cluster | None = None,
    request: PlanRequest | None = None,
) -> OfflinePlan:
    """Capture a model, and plan its stages.

    Args:
        module: the model in eval mode, with its parameters on meta.
        args: example of its positional inputs; only shapes and dtypes are used.
        kwargs: example of its keyword inputs.
        stages: number of stages, one for each rank. None for one stage per device of the cluster;
            without a cluster, None makes no plan.
        cluster: the devices to plan for; the first `stages` of them are used. None for devices that
            are all alike.
        request: options of the plan for the cluster; None for the defaults.

    Returns:
        The legal cuts, the plan, and its prediction on the cluster.

    Raises:
        CaptureError: the model cannot be traced.
        PlanError: it cannot be cut into that many stages, or does not fit the devices.
    """
    hardware = None if cluster is None else _first_devices(cluster, stages)
    graph = capture(module, args, kwargs)
    table = cut_table(graph)
    if hardware is not None:
        choice = _choice(graph, table, hardware, request or PlanRequest())
        return OfflinePlan(table, choice.plan, choice, advice(choice, hardware.devices))
    return OfflinePlan(table, None if stages is None else _equal_stages(graph, table, stages))


def make_plan(graph: Graph, stages: int) -> Plan:
    """Divide a model into stages of about equal work, with few bytes between them.

    Args:
        graph: the captured model; costs are counted at the sizes of its example.
        stages: number of stages, one for each rank.

    Returns:
        The plan; the same in every process that captured the same model.

    Raises:
        PlanError: the model cannot be cut into that many stages.
    """
    return _equal_stages(graph, cut_table(graph), stages)


def _equal_stages(graph: Graph, table: CutTable, stages: int) -> Plan:
    """Return the plan for equal devices, joined by links that take no time."""
    layers = [LayerCost(w, crossing=c) for w, c in zip(table.costs, table.crossing, strict=True)]
    found = partition(layers, [DeviceCost(1.0)] * stages, [LinkCost()] * (stages - 1))
    return plan_of(graph, table, found.cuts)


def _first_devices(cluster: Cluster, stages: int | None) -> Hardware:
    devices = len(cluster.devices)
    if stages is not None and stages > devices:
        raise PlanError(
            f"found {stages} stages for {devices} devices, expected a device for each stage; give "
            "fewer stages, or a cluster with more devices"
        )
    return DeviceSubset(cluster, tuple(range(stages or devices)))


def _choice(graph: Graph, table: CutTable, hardware: Hardware, request: PlanRequest) -> Choice:
    """Return the plan for the requested micro-batch, else for the largest that fits.

    The default micro-batch is tried first, then halves of it.
    """
    costs = partial(model_cost, graph, table)
    size = request.counted_size
    while True:
        try:
            return choose(graph, table, hardware, costs, [size], request)
        except PlanError:
            if request.micro_batch is not None or size == 1:
                raise
            size //= 2
