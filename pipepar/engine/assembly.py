"""The steps before the first micro-batch: capture the model, load a stage, connect the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipepar.engine.host_to_device import HostToDevice
from pipepar.engine.load_stage import load_stage
from pipepar.engine.loop import Program
from pipepar.engine.oom import oom_explained
from pipepar.engine.shared_source import SharedSource
from pipepar.engine.stage import Stage
from pipepar.engine.weights_from_root import share_buffers
from pipepar.engine.wiring import Wiring, wire_up
from pipepar.host.run_context import RunContext
from pipepar.microbatch import Step, Value
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.plan.placement import Ends, Placement
from pipepar.plan.plan import Plan
from pipepar.planner.plan_job import AgreedPlan


@dataclass(frozen=True, slots=True)
class Assembly:
    """One rank's stage, ready to run."""

    run: RunContext
    """World, device and display of the run; its tracer records the times of this stage."""
    graph: Graph
    """The whole model, without its weights."""
    agreed: AgreedPlan
    """The plan, micro-batch and depth, the same on every rank."""
    placement: Placement
    """The rank of each stage, of the source and of the sink."""
    stage: Stage | None
    """This rank's stage with its weights; None for a rank without a stage."""
    wiring: Wiring
    """The channels of this rank."""
    programs: tuple[Program, ...]
    """The programs of the stage, indexed by `Step.program`; empty for a rank without a stage."""

    @property
    def plan(self) -> Plan:
        """The plan, the same on every rank."""
        return self.agreed.plan

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of this rank's stage; 0 for a rank without a stage."""
        return 0 if self.stage is None else self.stage.weight_bytes

    def oom_explained(self) -> AbstractContextManager[None]:
        """Return a context that explains an out-of-memory error; see `pipepar.engine.oom`."""
        return oom_explained(self.run, self.graph, self.agreed, self.placement)


def capture_together(
    run: RunContext, shared: SharedSource, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Graph:
    """Capture the model on every rank, and check that all have the same graph. *Collective.*

    If the weights are distributed by the root, the model first gets the buffers of the root.

    Args:
        run: all ranks.
        shared: the model.
        args: example positional inputs: tensors, of which only shapes and dtypes matter, and
            Python values, nested in any way.
        kwargs: example keyword inputs.

    Returns:
        The graph, without weights.

    Raises:
        PipeparError: raised on the lowest rank that has the problem; PeerError on the others.
    """
    world, module = run.world, shared.source.module
    # Report a missing file before the capture, which may take minutes.
    world.together(lambda: shared.check(world.is_root))
    if shared.from_root:
        share_buffers(world, module)
    graph = world.together(lambda: capture(module, tuple(args), dict(kwargs)))
    world.together(lambda: world.agree("graphs of the model", graph.digest))
    return graph


def assemble(
    run: RunContext, shared: SharedSource, graph: Graph, agreed: AgreedPlan, ends: Ends
) -> Assembly:
    """Load this rank's stage and connect it to the other ranks. *Collective.*

    Args:
        run: all ranks; its display shows the bytes of weights that this rank has read.
        shared: the source of the weights.
        graph: the captured model.
        agreed: the plan, the micro-batch and the depth.
        ends: the ranks of the source and of the sink.

    Raises:
        PipeparError: raised on the lowest rank that has the problem; PeerError on the others.
    """
    plan, world = agreed.plan, run.world
    placement = Placement.of(ends, plan.ranks, len(plan.stages), world.size)
    run = run.on_stage(placement.stage_of(world.rank))
    explained = partial(oom_explained, run, graph, agreed, placement)
    with explained():
        stage = load_stage(run, shared, graph, plan, placement)
        wiring = wire_up(run, plan, placement, agreed.depth)
        programs = () if stage is None else (_program(run, stage, wiring, explained),)
    return Assembly(run, graph, agreed, placement, stage, wiring, programs)


def _program(
    run: RunContext,
    stage: Stage,
    wiring: Wiring,
    explained: Callable[[], AbstractContextManager[None]],
) -> Program:
    """Return the program that calls the stage.

    On a GPU it first copies the inputs there, and explains an out-of-memory error.
    """
    inputs, gpu = wiring.positions(stage.inputs), run.device_context.gpu
    if gpu is None:
        return Program(inputs, lambda values, step: stage(values))
    upload = HostToDevice(gpu)

    def compute(values: tuple[Value, ...], step: Step) -> Sequence[Value]:
        # Explain the error here, because the loop converts every exception to a StageError.
        with gpu.range(f"stage {stage.index}"), explained():
            return stage(upload(values))

    return Program(inputs, compute)
