"""`pipepar plan` under mpirun: measures the model on the ranks, and makes a plan for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipepar.comm.world import World
from pipepar.errors import InputError
from pipepar.host.device_context import open_device_context
from pipepar.host.devices import DeviceChoice
from pipepar.host.run_context import RunContext
from pipepar.jobs.planned_job import Planned, example_for, planned_model
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import cut_table
from pipepar.planner.advice import advice
from pipepar.planner.plan_job import measured_choice
from pipepar.planner.plan_offline import OfflinePlan
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.static_shapes import fixed_batch
from pipepar.progress import NO_DISPLAY


def plan_measured(
    world: World,
    planned: Planned,
    request: PlanRequest,
    stages: int | None,
    note: Callable[[str], None],
    device: DeviceChoice,
) -> OfflinePlan | None:
    """Measure a model on the ranks of this job, and plan for them. *Collective.*

    Args:
        world: all ranks; each can read the model, and the input if there is one.
        planned: the job to plan for, checked by `check_planned_job`.
        request: the options of the plan. Two are replaced: `samples` by the number of samples in
            the input, None if there are none or no input; `reorder` by True.
        stages: number of stages, None for one per rank; must equal the number of ranks, except
            that a single rank may represent any number of ranks of its speed.
        note: called on rank 0 with notes on the devices and the measurement.
        device: the kind of device to compute on; "auto" for a GPU if the rank has one.

    Returns:
        The plan, with the legal cuts and advice, on rank 0; None elsewhere.

    Raises:
        PipeparError: the options do not fit the ranks or the model, the input cannot be read, or
            the model cannot be captured, measured or cut into these stages.
    """
    world.together(lambda: _check_stages(world, stages))
    context = open_device_context(world, device, note)
    run = RunContext.begin(world, context, replace(NO_DISPLAY, note=note))
    module = world.together(lambda: planned_model(planned))
    (args, kwargs), samples = world.together(lambda: example_for(planned, module, request))
    graph = world.together(lambda: capture(module, args, kwargs))
    world.agree("graphs of the model", graph.digest)
    world.together(lambda: _check_micro_batch(graph, request))
    simulated_stages = stages if world.size == 1 else None
    request = replace(request, samples=samples or None, reorder=True)
    table = world.together(lambda: cut_table(graph))
    choice = measured_choice(run, graph, table, request, simulated_stages)
    if choice is None:
        return None
    devices = choice.prediction.target.hardware.devices
    return OfflinePlan(table, choice.plan, choice, advice(choice, devices))


def _check_stages(world: World, stages: int | None) -> None:
    if stages is not None and world.size > 1 and stages != world.size:
        raise InputError(
            f"found --stages {stages} with {world.size} ranks to measure, expected a stage for "
            f"each rank; leave --stages out, or start {stages} ranks"
        )


def _check_micro_batch(graph: Graph, request: PlanRequest) -> None:
    fixed = fixed_batch(graph)
    if fixed is not None and request.micro_batch not in (None, fixed):
        raise InputError(
            f"found --micro-batch {request.micro_batch} for a model that was captured for {fixed} "
            f"samples only, expected --micro-batch {fixed}; give that, or an example of "
            f"{request.micro_batch}"
        )
