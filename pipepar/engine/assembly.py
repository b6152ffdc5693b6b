"""Everything that happens before the first micro-batch: capture, plan, load, connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipepar.comm.gpu.nccl_channel import Watch
from pipepar.comm.world import World
from pipepar.engine.host_to_device import HostToDevice
from pipepar.engine.load_stage import load_stage
from pipepar.engine.loop import Program
from pipepar.engine.oom import oom_explained
from pipepar.engine.stage import Stage
from pipepar.engine.weights_from_root import share_buffers
from pipepar.engine.wiring import Wiring, wire_up
from pipepar.host.device_context import DeviceContext
from pipepar.host.threads import claim_threads
from pipepar.microbatch import Step, Value
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source
from pipepar.model.weights.weight_source import ModuleWeights
from pipepar.plan.placement import Ends, Placement
from pipepar.plan.plan import Plan
from pipepar.planner.choice import PlanRequest
from pipepar.planner.plan_job import Agreed, agree_on_plan
from pipepar.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Assembly:
    """One rank's stage, ready to run."""

    graph: Graph
    """The whole model, without its weights."""
    agreed: Agreed
    """The plan, the same on every rank."""
    placement: Placement
    """Which rank runs which stage, and where micro-batches enter and leave."""
    stage: Stage | None
    """This rank's part, with its weights; None for a rank without a stage."""
    wiring: Wiring
    """Its channels."""
    threads: int
    """Threads it computes with."""
    context: DeviceContext
    """Its device."""
    programs: tuple[Program, ...]
    """What the loop computes, by `Step.program`; none without a stage."""
    explained: Callable[[], AbstractContextManager[None]]
    """A context in which a lack of memory becomes an error that says what to do."""

    @property
    def plan(self) -> Plan:
        """The same on every rank."""
        return self.agreed.plan


def assemble(
    world: World,
    source: Source,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    context: DeviceContext,
    request: PlanRequest,
    plan: Plan | None = None,
    ends: Ends,
    weights_from_root: bool = False,
    loading: Progress = silent,
    inspect: Callable[[Graph], None] = lambda graph: None,
    note: Callable[[str], None] = lambda text: None,
    watch: Watch | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Assembly:
    """Build this rank's stage and connect it. *Collective.*

    Args:
        world: all ranks.
        source: the model and where its weights lie.
        args: example of the model's positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.
        context: where this rank computes.
        request: how the samples are to travel.
        plan: a plan to use, rank 0's counts; measured and made here if None.
        ends: where micro-batches enter and leave.
        weights_from_root: whether only rank 0's weights have values.
        loading: is told the bytes of weights that this rank has read.
        inspect: refuses a graph that does not fit the job, before anything is read for it.
        note: is told, on rank 0, what is worth knowing of the measuring.
        watch: see `wiring.wire_up`.
        pause: is called between what may take long; *collective*, and what it raises is raised.

    Raises:
        PipeparError: told once, by the lowest rank that has the problem; PeerError elsewhere.
    """
    threads = claim_threads(world)
    reads = world.is_root or not weights_from_root
    # A file that is not there is told at once, not after the capture.
    world.together(lambda: source.weights.check(()) if reads else None)
    if weights_from_root:
        share_buffers(world, source.module)
    graph = world.together(lambda: capture(source.module, tuple(args), dict(kwargs)))
    world.together(lambda: world.agree("graphs of the model", graph.digest))
    world.together(lambda: inspect(graph))
    pause()
    held = source.weights.held(context.device) if isinstance(source.weights, ModuleWeights) else 0
    agreed = agree_on_plan(world, graph, plan, request, note, context, held)
    pause()
    placement = Placement.of(ends, agreed.plan.ranks, len(agreed.plan.stages), world.size)
    index = placement.stage_of(world.rank)
    own = None if index is None else agreed.plan.stages[index]
    explained = partial(oom_explained, world, graph, agreed, own, context)
    with explained():
        stage = load_stage(
            world,
            graph,
            agreed.plan,
            placement,
            source.weights,
            weights_from_root,
            loading,
            context.device,
        )
        wiring = wire_up(world, agreed.plan, placement, agreed.depth, context, watch)
    programs = () if stage is None else (_program(stage, wiring, context, explained),)
    return Assembly(graph, agreed, placement, stage, wiring, threads, context, programs, explained)


def _program(
    stage: Stage,
    wiring: Wiring,
    context: DeviceContext,
    explained: Callable[[], AbstractContextManager[None]],
) -> Program:
    """What the loop computes: the stage itself, its inputs on the way to its GPU if it has one."""
    inputs, gpu = wiring.positions(stage.inputs), context.gpu
    if gpu is None:
        return Program(inputs, lambda values, step: stage(values))
    upload = HostToDevice(gpu)

    def compute(values: tuple[Value, ...], step: Step) -> Sequence[Value]:
        with gpu.range(f"stage {stage.index}"), explained():
            return stage(upload(values))

    return Program(inputs, compute)
