"""The plan of a job: rank 0 checks or makes it, and every rank receives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipepar.comm.world import World
from pipepar.host.run_context import RunContext
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable, cut_table
from pipepar.model.split.operations import accepts_rows, example_rows
from pipepar.plan.costs import LinkCost
from pipepar.plan.hardware import Cluster, Neighbours, several_kinds
from pipepar.plan.plan import Plan
from pipepar.planner.choice import Choice, choose, faster
from pipepar.planner.plan_check import require_fit
from pipepar.planner.plan_from_cuts import plan_of
from pipepar.planner.plan_offline import make_plan
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import ModelCost, model_cost
from pipepar.planner.profile import measure_profile
from pipepar.planner.static_shapes import fixed_batch

Note = Callable[[str], None]
"""A function that displays a note to the user."""


@dataclass(frozen=True, slots=True)
class AgreedPlan:
    """The plan of a job, received by every rank."""

    plan: Plan
    """The plan; the same on every rank."""
    micro_batch: int
    """Samples in a micro-batch."""
    depth: int
    """Micro-batches that may wait on each end of a channel."""
    choice: Choice | None
    """The plan with its prediction; only on rank 0, and only if ranks were measured."""


def agree_on_plan(
    run: RunContext, graph: Graph, request: PlanRequest, held: float = 0.0
) -> AgreedPlan:
    """Use the given plan, or make one, and send it to every rank. *Collective.*

    Without samples, the plan is made from counted costs. With samples, it is made from
    measurements, except that a single rank with one possible micro-batch needs none.

    Args:
        run: the context of the run; rank 0 displays notes on the measurement.
        graph: the captured model.
        request: the options of the user, and on rank 0 the given plan.
        held: bytes of the weights of the model that this rank already has in memory.

    Returns:
        The plan, its micro-batch and its depth, the same on every rank.

    Raises:
        PipeparError: the given plan does not fit the model or the ranks, the measurement failed, or
            no plan fits; raised by the lowest rank that has the problem. The other ranks raise
            PeerError.
    """
    world = run.world
    choice: Choice | None = None
    idle = request.samples == 0
    case = world.broadcast("given" if request.given else "nothing to do" if idle else "")
    if case == "given":
        made = world.together(lambda: _given(graph, request, world.size))
    elif case:
        made = world.together(lambda: request.completed(make_plan(graph, world.size)))
    elif world.size == 1 and len(sizes := _sizes(world, graph, request)) == 1:
        made = plan_of(graph, cut_table(graph), (), sizes[0], request.depths[0])
    else:
        table = world.together(lambda: cut_table(graph))
        choice = measured_choice(run, graph, table, request, held=held)
        made = choice.plan if choice else None
    plan = Plan.from_json(world.broadcast(made.to_json() if made else ""))
    world.agree("plans", plan.digest)
    assert plan.micro_batch is not None  # every case above sets both
    assert plan.depth is not None
    return AgreedPlan(plan, plan.micro_batch, plan.depth, choice)


def measured_choice(
    run: RunContext,
    graph: Graph,
    table: CutTable,
    request: PlanRequest,
    stages: int | None = None,
    held: float = 0.0,
) -> Choice | None:
    """Measure the ranks and links, and make the fastest plan for them. *Collective.*

    Args:
        run: the context of the run; rank 0 displays notes on the measurement.
        graph: the captured model.
        table: its legal cuts and counted costs.
        request: the options of the user; its given plan is ignored.
        stages: in a world of one rank, the number of devices like this one to plan for, joined by
            links that take no time; None to plan for the ranks of the world.
        held: bytes of the weights of the model that this rank already has in memory.

    Returns:
        The plan with its prediction on rank 0, None on the other ranks.

    Raises:
        PipeparError: the measurement failed, or no plan fits; see `agree_on_plan`.
    """
    world = run.world
    sizes = _sizes(world, graph, request)
    profile = measure_profile(run, graph, table, sizes, held, request.fresh)
    hardware = profile.hardware if stages is None else _repeated(profile.hardware, stages)

    def costs(size: int) -> ModelCost:
        return model_cost(graph, table, size, profile.curve[size])

    def make() -> Choice | None:
        if not world.is_root:
            return None
        sizes = list(profile.curve)
        choice = choose(graph, table, hardware, costs, sizes, request)
        if not (request.reorder and several_kinds(hardware)):
            return choice
        pooled = Cluster.by_kind(hardware)
        other = replace(request, free_order=True)
        return faster(choice, lambda: choose(graph, table, pooled, costs, sizes, other))

    return world.together(make)


def _sizes(world: World, graph: Graph, request: PlanRequest) -> list[int]:
    """Return the sizes of micro-batch to choose from, as determined by rank 0. *Collective.*"""

    def own() -> list[int]:
        # The result of the other ranks is not used, so they skip the slow checks.
        fixed = fixed_batch(graph)
        if not world.is_root or fixed is not None or request.micro_batch is not None:
            return request.sizes(fixed)
        known = example_rows(graph)
        if not accepts_rows(graph, known):  # an output does not have one row for each sample
            return [known]
        return [size for size in request.sizes(None) if accepts_rows(graph, size)] or [known]

    sizes: list[int] = json.loads(world.broadcast(json.dumps(world.together(own))))
    return sizes


def _repeated(hardware: Neighbours, stages: int) -> Neighbours:
    """Return `stages` copies of a single device, joined by links that take no time."""
    return Neighbours(hardware.devices * stages, (LinkCost(),) * (stages - 1))


def _given(graph: Graph, request: PlanRequest, ranks: int) -> Plan | None:
    """Return the given plan with a micro-batch and a depth; None on a rank without a plan.

    The plan is checked, see `require_fit`.
    """
    if request.given is None:
        return None
    require_fit(request.given, graph, ranks)
    return request.completed(request.given, fixed_batch(graph))
