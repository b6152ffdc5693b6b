"""Planning with the ranks of a job that only measures: what `pipepar plan` does under mpirun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipepar.comm.world import World
from pipepar.errors import InputError
from pipepar.model.capture import capture
from pipepar.model.crossing import cut_table
from pipepar.model.graph import Graph
from pipepar.runtime.advice import advice
from pipepar.runtime.agreement import measured_choice
from pipepar.runtime.choice import Wish
from pipepar.runtime.devices import Wanted
from pipepar.runtime.examples import Planned, example_for, planned_model
from pipepar.runtime.fixed import fixed_batch
from pipepar.runtime.planning import Planning
from pipepar.runtime.seat import take_seat
from pipepar.runtime.threads import claim_threads


def plan_measured(
    world: World,
    planned: Planned,
    wish: Wish,
    stages: int | None,
    note: Callable[[str], None],
    fresh: bool,
    device: Wanted,
) -> Planning | None:
    """Measure a model on the ranks of this job, and plan for them. *Collective.*

    Args:
        world: all ranks; each sees the model, and the input if there is one.
        planned: the job to plan for, as `check_planned` lets it pass.
        wish: what the user wants of the plan; it is made for as many samples as the input has.
        stages: how many, as many as there are ranks; one rank stands for any number like it.
        note: is told, on rank 0, what is worth knowing of the measuring.
        fresh: whether to measure again what earlier jobs have kept.
        device: what ranks compute on; "auto" for a GPU where there is one.

    Returns:
        The plan on rank 0, None elsewhere.

    Raises:
        PipeparError: the model cannot be captured, measured or cut so; told once.
    """
    world.together(lambda: _check(world, stages))
    seat = take_seat(world, device, note)
    claim_threads(world)
    module = world.together(lambda: planned_model(planned))
    (args, kwargs), samples = world.together(lambda: example_for(planned, module, wish.micro_batch))
    graph = world.together(lambda: capture(module, args, kwargs))
    world.agree("graphs of the model", graph.digest)
    world.together(lambda: _check_size(graph, wish))
    several = stages if world.size == 1 else None
    wish = replace(wish, samples=samples or None)
    table = world.together(lambda: cut_table(graph))
    choice = measured_choice(
        world, graph, table, wish, note, stages=several, fresh=fresh, seat=seat
    )
    if choice is None:
        return None
    devices = choice.prediction.target.hardware.devices
    return Planning(table, choice.plan, choice, advice(choice, devices))


def _check(world: World, stages: int | None) -> None:
    if stages is not None and world.size > 1 and stages != world.size:
        raise InputError(
            f"found --stages {stages} with {world.size} ranks to measure, expected a stage for "
            f"each; leave --stages out, or start {stages} ranks"
        )


def _check_size(graph: Graph, wish: Wish) -> None:
    fixed = fixed_batch(graph)
    if fixed is not None and wish.micro_batch not in (None, fixed):
        raise InputError(
            f"found --micro-batch {wish.micro_batch} for a model that was captured for {fixed} "
            f"samples only, expected --micro-batch {fixed}; give that, or an example of "
            f"{wish.micro_batch}"
        )
