"""The plan of a job, made on rank 0 of what all ranks measured, and the same on every rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipepar.comm.world import World
from pipepar.host.run_context import RunContext
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable, cut_table
from pipepar.model.split.operations import example_rows, takes_rows
from pipepar.plan.costs import LinkCost
from pipepar.plan.hardware import Interchangeable, Neighbours, several_kinds
from pipepar.plan.plan import Plan
from pipepar.planner.choice import Choice, choose, faster
from pipepar.planner.plan_check import require_fit
from pipepar.planner.plan_from_cuts import plan_of
from pipepar.planner.plan_offline import make_plan
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import ModelCost, model_cost
from pipepar.planner.profile import take_profile
from pipepar.planner.static_shapes import fixed_batch

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks will do."""

    plan: Plan
    """The same on every rank."""
    micro_batch: int
    """Samples that travel together."""
    depth: int
    """Micro-batches that may wait on each end of a channel."""
    choice: Choice | None
    """What it was measured to take, on rank 0; None where the plan was given."""


def agree_on_plan(run: RunContext, graph: Graph, request: PlanRequest, held: float = 0.0) -> Agreed:
    """Take the plan that the user gave, or measure and make one. *Collective.*

    Args:
        run: all ranks. Rank 0 shows remarks on the measuring.
        graph: the captured model.
        request: what the user wants of a plan, and on rank 0 the plan that was given.
        held: bytes of the model's weights that this rank has in memory already.

    Raises:
        PipeparError: the plan does not fit the model or the ranks, or there is none that does;
            raised once, by the lowest rank that has the problem; PeerError elsewhere.
    """
    world = run.world
    choice: Choice | None = None
    idle = request.samples == 0
    way = world.broadcast("given" if request.given else "nothing to do" if idle else "")
    if way == "given":
        made = world.together(lambda: _taken(graph, request, world.size))
    elif way:
        made = world.together(lambda: request.completed(make_plan(graph, world.size)))
    elif world.size == 1 and len(sizes := _sizes(world, graph, request)) == 1:
        made = plan_of(graph, cut_table(graph), (), sizes[0], request.depths[0])
    else:
        table = world.together(lambda: cut_table(graph))
        choice = measured_choice(run, graph, table, request, held=held)
        made = choice.plan if choice else None
    plan = Plan.from_json(world.broadcast(made.to_json() if made else ""))
    world.agree("plans", plan.digest)
    assert plan.micro_batch is not None  # every way above names both
    assert plan.depth is not None
    return Agreed(plan, plan.micro_batch, plan.depth, choice)


def measured_choice(
    run: RunContext,
    graph: Graph,
    table: CutTable,
    request: PlanRequest,
    stages: int | None = None,
    held: float = 0.0,
) -> Choice | None:
    """Measure what the ranks can do, and make the plan for that. *Collective.*

    Args:
        run: all ranks. Rank 0 shows remarks on the measuring.
        graph: the captured model.
        table: its legal cuts and counted costs.
        request: what the user wants of a plan.
        stages: in a world of one, for how many devices like this one to plan, on links that cost
            nothing.
        held: bytes of the model's weights that this rank has in memory already.

    Returns:
        The plan on rank 0, None elsewhere.

    Raises:
        PipeparError: as in `agree_on_plan`.
    """
    world = run.world
    sizes = _sizes(world, graph, request)
    profile = take_profile(run, graph, table, sizes, held, request.fresh)
    hardware = profile.hardware if stages is None else _as_many(profile.hardware, stages)

    def costs(size: int) -> ModelCost:
        return model_cost(graph, table, size, profile.curve[size])

    def make() -> Choice | None:
        if not world.is_root:
            return None
        sizes = list(profile.curve)
        choice = choose(graph, table, hardware, costs, sizes, request)
        if not (request.reorder and several_kinds(hardware)):
            return choice
        pooled = Interchangeable.of(hardware)
        other = replace(request, free_order=True)
        return faster(choice, lambda: choose(graph, table, pooled, costs, sizes, other))

    return world.together(make)


def _sizes(world: World, graph: Graph, request: PlanRequest) -> list[int]:
    """The micro-batches to choose from; rank 0's count, as does its input."""

    def own() -> list[int]:
        fixed = fixed_batch(graph)
        if not world.is_root or fixed is not None or request.micro_batch is not None:
            return request.sizes(fixed)
        known = example_rows(graph)
        if not takes_rows(graph, known):  # its rows are not those of its samples: as it is, then
            return [known]
        return [size for size in request.sizes(None) if takes_rows(graph, size)] or [known]

    sizes: list[int] = json.loads(world.broadcast(json.dumps(world.together(own))))
    return sizes


def _as_many(hardware: Neighbours, stages: int) -> Neighbours:
    return Neighbours(hardware.devices * stages, (LinkCost(),) * (stages - 1))


def _taken(graph: Graph, request: PlanRequest, ranks: int) -> Plan | None:
    if request.given is None:  # on every rank but 0
        return None
    require_fit(request.given, graph, ranks)
    return request.completed(request.given, fixed_batch(graph))
