"""The choice of the micro-batch, the depth, the cuts and the order of the ranks.

A larger micro-batch uses a device better; a smaller one fills the pipeline sooner and takes less
memory. So a plan is made for each size with known times, and the fastest one is chosen for the
number of samples of the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

from pipepar.errors import PlanError
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable
from pipepar.plan.costs import LayerCost
from pipepar.plan.hardware import DeviceSubset, Hardware
from pipepar.plan.partition import DeviceUse, Links, partition
from pipepar.plan.plan import Plan
from pipepar.planner.plan_from_cuts import plan_of
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import ModelCost, Prediction, Target, predict

# A smaller micro-batch is preferred if it is slower by at most this share.
_CLOSE: Final = 0.03
# Another order of the ranks must be faster by this share, since its prediction is less exact.
_GAIN: Final = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan and its prediction."""

    plan: Plan
    """The plan, with its micro-batch and depth."""
    prediction: Prediction
    """The prediction for the hardware of the plan."""
    cost: ModelCost
    """The cost of the model for one micro-batch."""


def choose(
    graph: Graph,
    table: CutTable,
    hardware: Hardware,
    costs: Callable[[int], ModelCost],
    sizes: Sequence[int],
    request: PlanRequest,
) -> Choice:
    """Return the fastest plan for the requested number of samples.

    Args:
        graph: the captured model.
        table: its legal cuts.
        hardware: the devices and links.
        costs: returns the cost of the model for a size of micro-batch.
        sizes: the sizes of micro-batch to choose from, ascending.
        request: the number of samples, the depths, and the allowed use of devices.

    Returns:
        The plan with the smallest micro-batch of those that are slower than the fastest by at most
        3 %, with its prediction.

    Raises:
        PlanError: for every size, there are too few cuts, or the stages do not fit the devices; the
            message is that of the smallest size.
        ValueError: there are no sizes.
    """
    planned, refusal = list[Choice](), None
    for size in sizes:
        try:
            planned.append(_fitting(graph, table, hardware, costs(size), size, request))
        except PlanError as error:
            refusal = refusal or error
    if not planned:
        raise refusal or ValueError("no sizes to choose from")
    fastest = max(choice.prediction.samples_per_second for choice in planned)
    return next(
        choice
        for choice in planned
        if choice.prediction.samples_per_second >= fastest * (1 - _CLOSE)
    )


def faster(choice: Choice, other: Callable[[], Choice]) -> Choice:
    """Return another choice if it is more than 5 % faster than the given one, else the given one.

    Args:
        choice: the choice in the order of the ranks.
        other: returns the choice in another order; if it raises PlanError, `choice` is returned.
    """
    try:
        made = other()
    except PlanError:
        return choice
    gain = made.prediction.samples_per_second / (choice.prediction.samples_per_second or math.inf)
    return made if gain > 1 + _GAIN else choice


def _fitting(
    graph: Graph,
    table: CutTable,
    hardware: Hardware,
    cost: ModelCost,
    size: int,
    request: PlanRequest,
) -> Choice:
    """Return the plan with the first of the requested depths for which there is one."""
    *others, last = request.depths
    for depth in others:
        try:
            return _planned(
                graph, table, cost, Target(hardware, size, depth, request.samples), request
            )
        except PlanError:
            continue  # the last depth raises the error
    return _planned(graph, table, cost, Target(hardware, size, last, request.samples), request)


def _planned(
    graph: Graph, table: CutTable, cost: ModelCost, target: Target, request: PlanRequest
) -> Choice:
    """Return the plan for one micro-batch and one depth."""
    try:
        return _cut(graph, table, cost, cost.layers, target, request)
    except PlanError:
        # The layers count a shared weight once for each layer that uses it, though a stage stores
        # it once. So try again with each weight counted once.
        sharing = _cut(graph, table, cost, cost.sharing, target, request)
        if all(stage.memory <= stage.device.memory for stage in sharing.prediction.stages):
            return sharing
        raise


def _cut(
    graph: Graph,
    table: CutTable,
    cost: ModelCost,
    layers: Sequence[LayerCost],
    target: Target,
    request: PlanRequest,
) -> Choice:
    """Return the plan for given costs of the layers, which decide the memory of a stage."""
    found = partition(
        layers,
        target.hardware.devices,
        _links(target.hardware, request.free_order),
        DeviceUse(request.free_order, request.fewer),
        depth=target.depth,
    )
    in_order = found.devices == tuple(range(len(target.hardware.devices)))
    ranks = None if in_order else found.devices
    plan = plan_of(graph, table, found.cuts, target.micro_batch, target.depth, ranks)
    taken = replace(target, hardware=DeviceSubset(target.hardware, found.devices))
    return Choice(plan, predict(plan, cost, taken), cost)


def _links(hardware: Hardware, free_order: bool) -> Links:
    devices = hardware.devices
    if not free_order:
        return [hardware.link(index, index + 1) for index in range(len(devices) - 1)]
    return {
        frozenset((devices[one].kind, devices[other].kind)): hardware.link(one, other)
        for one, other in combinations(range(len(devices)), 2)
    }
