"""Everything that happens before the first micro-batch: capture, plan, load, connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipepar.comm.world import World
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
from pipepar.runtime.stage import Stage
from pipepar.runtime.threads import claim_threads
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

    @property
    def plan(self) -> Plan:
        """The same on every rank."""
        return self.agreed.plan

    @property
    def program(self) -> Program:
        """What the loop computes."""
        return Program(self.stage.inputs, self.stage.outputs, self.stage)


def assemble(
    world: World,
    source: Source,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    wish: Wish,
    plan: Plan | None = None,
    carried: Sequence[str] = (),
    results_to_root: bool = False,
    weights_from_root: bool = False,
    loading: Progress = silent,
    inspect: Callable[[Graph], None] = lambda graph: None,
    note: Callable[[str], None] = lambda text: None,
) -> Assembly:
    """Build this rank's stage and connect it. *Collective.*

    Args:
        world: rank k will own stage k.
        source: the model and where its weights lie.
        args: example of the model's positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.
        wish: how the samples are to travel.
        plan: a plan to use, rank 0's counts; measured and made here if None.
        carried: see `wiring.edges_of`.
        results_to_root: see `wiring.wire_up`.
        weights_from_root: whether only rank 0's weights have values.
        loading: is told the bytes of weights that this rank has read.
        inspect: refuses a graph that does not fit the job, before anything is read for it.
        note: is told, on rank 0, what is worth knowing of the measuring.

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
    held = source.weights.held if isinstance(source.weights, ModuleWeights) else 0
    agreed = agree_on_plan(world, graph, plan, wish, note, held)
    stage = load_stage(world, graph, agreed.plan, source.weights, weights_from_root, loading)
    edges = edges_of(agreed.plan, carried)
    wiring = wire_up(world, agreed.plan, edges, agreed.depth, results_to_root)
    return Assembly(graph, agreed, stage, wiring, threads)
