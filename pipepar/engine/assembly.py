"""Everything that happens before the first micro-batch: capture, plan, load, connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from pipepar.engine.wiring import Wiring, edges_of, wire_up
from pipepar.host.device_context import DeviceContext
from pipepar.host.threads import claim_threads
from pipepar.microbatch import Value
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source
from pipepar.model.weights.weight_source import ModuleWeights
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
    stage: Stage
    """This rank's part, with its weights."""
    wiring: Wiring
    """Its channels."""
    threads: int
    """Threads it computes with."""
    context: DeviceContext
    """Its device."""
    program: Program
    """What the loop computes."""

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
    carried: Sequence[str] = (),
    results_to_root: bool = False,
    weights_from_root: bool = False,
    loading: Progress = silent,
    inspect: Callable[[Graph], None] = lambda graph: None,
    note: Callable[[str], None] = lambda text: None,
    watch: Watch | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Assembly:
    """Build this rank's stage and connect it. *Collective.*

    Args:
        world: rank k will own stage k.
        source: the model and where its weights lie.
        args: example of the model's positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.
        context: where this rank computes.
        request: how the samples are to travel.
        plan: a plan to use, rank 0's counts; measured and made here if None.
        carried: see `wiring.edges_of`.
        results_to_root: see `wiring.wire_up`.
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
    reads = world.rank == 0 or not weights_from_root
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
    with oom_explained(world, graph, agreed, context):
        stage = load_stage(
            world, graph, agreed.plan, source.weights, weights_from_root, loading, context.device
        )
        edges = edges_of(agreed.plan, carried)
        wiring = wire_up(world, agreed.plan, edges, agreed.depth, results_to_root, context, watch)
    program = _program(world, graph, agreed, stage, context)
    return Assembly(graph, agreed, stage, wiring, threads, context, program)


def _program(
    world: World, graph: Graph, agreed: Agreed, stage: Stage, context: DeviceContext
) -> Program:
    """What the loop computes: the stage itself, or with its inputs on the way to its GPU."""
    gpu = context.gpu
    if gpu is None:
        return Program(stage.inputs, stage.outputs, stage)
    upload = HostToDevice(gpu)
    short = partial(oom_explained, world, graph, agreed, context)

    def compute(values: tuple[Value, ...]) -> Sequence[Value]:
        with gpu.range(f"stage {stage.index}"), short():
            return stage(upload(values))

    return Program(stage.inputs, stage.outputs, compute)
