"""From a model to a plan without running anything: costs counted, cuts from the programme."""

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
from pipepar.plan.cluster import Cluster
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.hardware import DeviceSubset, Hardware
from pipepar.plan.partition import partition
from pipepar.plan.plan import Plan
from pipepar.planner.advice import advice
from pipepar.planner.choice import Choice, choose
from pipepar.planner.plan_from_cuts import plan_of
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import model_cost


@dataclass(frozen=True, slots=True)
class Planning:
    """What is known of a model before it runs."""

    table: CutTable
    """Where it can be cut."""
    plan: Plan | None = None
    """How it is cut; None if nobody said into how many stages."""
    choice: Choice | None = None
    """What the plan would take; None if nobody said on which devices."""
    advice: str | None = None
    """What would be faster than a pipeline; None if nothing is known to be."""


def plan_model(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    stages: int | None,
    cluster: Cluster | None = None,
    request: PlanRequest | None = None,
) -> Planning:
    """Capture a model, and plan its stages.

    Args:
        module: the model in eval mode, parameters on meta.
        args: example of its positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.
        stages: how many, one for each rank; None for as many as the cluster has devices, or for no
            plan without one.
        cluster: the devices to plan for, of which the first are used; None for equal ones.
        request: what to plan for on that cluster; None to choose all.

    Returns:
        Its legal cuts, the plan, and what that would take on the cluster.

    Raises:
        CaptureError: the model cannot be traced.
        PlanError: it cannot be cut into that many stages, or does not fit the devices.
    """
    hardware = None if cluster is None else _first(cluster, stages)
    graph = capture(module, args, kwargs)
    table = cut_table(graph)
    if hardware is not None:
        choice = _choice(graph, table, hardware, request or PlanRequest())
        return Planning(table, choice.plan, choice, advice(choice, hardware.devices))
    return Planning(table, None if stages is None else _equal_stages(graph, table, stages))


def make_plan(graph: Graph, stages: int) -> Plan:
    """Divide a model into stages of about equal work that send little.

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
    found = partition(layers, [DeviceCost(1.0)] * stages, [LinkCost()] * (stages - 1))
    return plan_of(graph, table, found.cuts)


def _first(cluster: Cluster, stages: int | None) -> Hardware:
    devices = len(cluster.devices)
    if stages is not None and stages > devices:
        raise PlanError(
            f"found {stages} stages for {devices} devices, expected a device for each stage; give "
            "fewer stages, or a cluster with more devices"
        )
    return DeviceSubset(cluster, tuple(range(stages or devices)))


def _choice(graph: Graph, table: CutTable, hardware: Hardware, request: PlanRequest) -> Choice:
    """For the micro-batch that is wished, else the usual one, or the largest below that fits."""
    costs = partial(model_cost, graph, table)
    size = request.counted_size
    while True:
        try:
            return choose(graph, table, hardware, costs, [size], request)
        except PlanError:
            if request.micro_batch is not None or size == 1:
                raise
            size //= 2
