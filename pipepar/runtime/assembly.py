"""Everything that happens before the first micro-batch: capture, plan, load, connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipepar.comm.gpu_channel import Watch
from pipepar.comm.world import World
from pipepar.microbatch import Value
from pipepar.model.capture import capture
from pipepar.model.graph import Graph
from pipepar.model.source import Source
from pipepar.model.weights import ModuleWeights
from pipepar.plan.plan import Plan
from pipepar.runtime.agreement import Agreed, agree_on_plan
from pipepar.runtime.choice import Wish
from pipepar.runtime.loading import load_stage
from pipepar.runtime.loop import Program
from pipepar.runtime.progress import Progress, silent
from pipepar.runtime.scatter import share_buffers
from pipepar.runtime.seat import Seat
from pipepar.runtime.shortage import shortage_told
from pipepar.runtime.stage import Stage
from pipepar.runtime.threads import claim_threads
from pipepar.runtime.upload import Upload
from pipepar.runtime.wiring import Wiring, edges_of, wire_up


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
    seat: Seat
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
    seat: Seat,
    wish: Wish,
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
        seat: where this rank computes.
        wish: how the samples are to travel.
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
    held = source.weights.held(seat.device) if isinstance(source.weights, ModuleWeights) else 0
    agreed = agree_on_plan(world, graph, plan, wish, note, seat, held)
    pause()
    with shortage_told(world, graph, agreed, seat):
        stage = load_stage(
            world, graph, agreed.plan, source.weights, weights_from_root, loading, seat.device
        )
        edges = edges_of(agreed.plan, carried)
        wiring = wire_up(world, agreed.plan, edges, agreed.depth, results_to_root, seat, watch)
    program = _program(world, graph, agreed, stage, seat)
    return Assembly(graph, agreed, stage, wiring, threads, seat, program)


def _program(world: World, graph: Graph, agreed: Agreed, stage: Stage, seat: Seat) -> Program:
    """What the loop computes: the stage itself, or with its inputs on the way to its GPU."""
    gpu = seat.gpu
    if gpu is None:
        return Program(stage.inputs, stage.outputs, stage)
    upload = Upload(gpu)
    short = partial(shortage_told, world, graph, agreed, seat)

    def compute(values: tuple[Value, ...]) -> Sequence[Value]:
        with gpu.range(f"stage {stage.index}"), short():
            return stage(upload(values))

    return Program(stage.inputs, stage.outputs, compute)
