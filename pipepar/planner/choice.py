"""How many samples travel together, how many micro-batches may wait, and where to cut for that.

A larger micro-batch makes the most of a device, a smaller one fills the pipeline sooner and takes
less memory. So a plan is made for each size whose times are known, and the one counts by which the
user's samples are done first.
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

# A smaller micro-batch that is slower by no more than this is taken.
_CLOSE: Final = 0.03
# Another order of the ranks must be faster by this, for it is predicted by coarser figures.
_WORTH: Final = 0.05


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan, and what it would take."""

    plan: Plan
    """With its micro-batch and depth."""
    prediction: Prediction
    """On the hardware that it was made for."""
    cost: ModelCost
    """Of the model, for one micro-batch."""


def choose(
    graph: Graph,
    table: CutTable,
    hardware: Hardware,
    costs: Callable[[int], ModelCost],
    sizes: Sequence[int],
    request: PlanRequest,
) -> Choice:
    """The plan by which the samples are done first.

    Args:
        graph: the captured model.
        table: its legal cuts.
        hardware: one device for each stage.
        costs: what the model costs for a size of micro-batch.
        sizes: those to choose from, ascending.
        request: how many samples there are, and the depth if the user named one.

    Returns:
        The best of them. Of two that are about as fast the one with the smaller micro-batch.

    Raises:
        PlanError: no size can be cut into as many stages as there are devices, or fits them.
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
    """The other choice if it is clearly faster than the first and there is one.

    Args:
        choice: in the order of the ranks.
        other: makes one in another order; may raise PlanError.
    """
    try:
        made = other()
    except PlanError:
        return choice
    gain = made.prediction.samples_per_second / (choice.prediction.samples_per_second or math.inf)
    return made if gain > 1 + _WORTH else choice


def _fitting(
    graph: Graph,
    table: CutTable,
    hardware: Hardware,
    cost: ModelCost,
    size: int,
    request: PlanRequest,
) -> Choice:
    """The plan with the first of the depths that fits the devices' memory."""
    *others, last = request.depths
    for depth in others:
        try:
            return _planned(
                graph, table, cost, Target(hardware, size, depth, request.samples), request
            )
        except PlanError:
            continue  # the last one tells why
    return _planned(graph, table, cost, Target(hardware, size, last, request.samples), request)


def _planned(
    graph: Graph, table: CutTable, cost: ModelCost, target: Target, request: PlanRequest
) -> Choice:
    try:
        return _cut(graph, table, cost, cost.layers, target, request)
    except PlanError:
        # A weight that several layers use counts for each of them, though a stage has it once.
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
