"""What happens before the first micro-batch, around the plan: capture, then load and connect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from pipepar.engine.wiring import Wiring, edges_of, wire_up
from pipepar.host.device_context import DeviceContext
from pipepar.host.run_context import RunContext
from pipepar.microbatch import Value
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.plan.plan import Plan
from pipepar.planner.plan_job import Agreed


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
    context: DeviceContext
    """Its device."""
    program: Program
    """What the loop computes."""

    @property
    def plan(self) -> Plan:
        """The same on every rank."""
        return self.agreed.plan


def capture_together(
    run: RunContext, shared: SharedSource, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Graph:
    """Capture the model on every rank, and check that all have the same graph. *Collective.*

    Args:
        run: all ranks.
        shared: the model.
        args: example of the model's positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.

    Raises:
        PipeparError: told once, by the lowest rank that has the problem; PeerError elsewhere.
    """
    world, module = run.world, shared.source.module
    # A file that is not there is told at once, not after the capture.
    world.together(lambda: shared.check(world.rank))
    if shared.from_root:
        share_buffers(world, module)
    graph = world.together(lambda: capture(module, tuple(args), dict(kwargs)))
    world.together(lambda: world.agree("graphs of the model", graph.digest))
    return graph


def assemble(
    run: RunContext,
    shared: SharedSource,
    graph: Graph,
    agreed: Agreed,
    carried: Sequence[str] = (),
    results_to_root: bool = False,
) -> Assembly:
    """Load this rank's stage and connect it. *Collective.*

    Args:
        run: rank k owns stage k. Its display is told the bytes of weights that this rank has read.
        shared: where the weights lie.
        graph: the captured model.
        agreed: the plan.
        carried: see `wiring.edges_of`.
        results_to_root: see `wiring.wire_up`.

    Raises:
        PipeparError: told once, by the lowest rank that has the problem; PeerError elsewhere.
    """
    world, context = run.world, run.device_context
    watch = run.tracer.record_beside if run.tracer.keeps_spans else None
    with oom_explained(run, graph, agreed):
        stage = load_stage(run, shared, graph, agreed.plan)
        edges = edges_of(agreed.plan, carried)
        wiring = wire_up(world, agreed.plan, edges, agreed.depth, results_to_root, context, watch)
    return Assembly(graph, agreed, stage, wiring, context, _program(run, graph, agreed, stage))


def _program(run: RunContext, graph: Graph, agreed: Agreed, stage: Stage) -> Program:
    """What the loop computes: the stage itself, or with its inputs on the way to its GPU."""
    gpu = run.device_context.gpu
    if gpu is None:
        return Program(stage.inputs, stage.outputs, stage)
    upload = HostToDevice(gpu)
    short = partial(oom_explained, run, graph, agreed)

    def compute(values: tuple[Value, ...]) -> Sequence[Value]:
        with gpu.range(f"stage {stage.index}"), short():
            return stage(upload(values))

    return Program(stage.inputs, stage.outputs, compute)
