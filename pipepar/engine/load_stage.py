"""Loads the weights of each rank's stage, from the checkpoint files or from the root."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from pipepar.engine.shared_source import SharedSource
from pipepar.engine.stage import BareStage, Stage, weights_of
from pipepar.engine.weights_from_root import WeightsFromRoot
from pipepar.host.run_context import RunContext
from pipepar.model.capture.graph import Graph
from pipepar.model.weights.weight_source import Reading, Weights, WeightSpec
from pipepar.plan.placement import Placement
from pipepar.plan.plan import Plan


def load_stage(
    run: RunContext, shared: SharedSource, graph: Graph, plan: Plan, placement: Placement
) -> Stage | None:
    """Load this rank's stage and only its weights. *Collective.*

    Args:
        run: all ranks; its display shows the bytes that this rank has read.
        shared: the source of the weights.
        graph: the captured model.
        plan: a plan made for this graph.
        placement: the rank of each stage.

    Returns:
        The stage; None for a rank without one.

    Raises:
        PipeparError: see `Weights.check`, `BareStage.cut` and `BareStage.load`; raised on the
            lowest rank that has the problem, PeerError on the others.
    """
    world, device, from_root = run.world, run.device_context.device, shared.from_root
    specs = [_specs_of(graph, plan, placement.stage_of(rank)) for rank in range(world.size)]
    mine, index = specs[world.rank], placement.stage_of(world.rank)
    read = [spec for stage in specs for spec in stage] if from_root and world.is_root else mine
    with run.display.weights(sum(spec.nbytes for spec in read)) as advance:
        weights: Weights = _CountedWeights(shared.source.weights, advance)
        if from_root:
            weights = WeightsFromRoot(world, weights, specs)
        world.together(lambda: weights.check(mine))
        # All ranks cut before any rank reads: if one failed, the root would send to it forever.
        bare = world.together(
            lambda: None if index is None else BareStage.cut(graph, plan, index, device)
        )
        return world.together(lambda: bare.load(weights) if bare else _read_nothing(weights))


def _specs_of(graph: Graph, plan: Plan, stage: int | None) -> list[WeightSpec]:
    return [] if stage is None else weights_of(graph, plan.stages[stage])


def _read_nothing(weights: Weights) -> None:
    """Take part in the collective read on a rank without a stage; the root may have to send."""
    deque(weights.read([]), maxlen=0)


class _CountedWeights:
    """Weights that report the bytes of each tensor after the caller has used it."""

    def __init__(self, weights: Weights, advance: Callable[[int], None]) -> None:
        self._weights = weights
        self._advance = advance

    def check(self, specs: Sequence[WeightSpec]) -> None:
        self._weights.check(specs)

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        sizes = {spec.name: spec.nbytes for spec in specs}
        for name, tensor in self._weights.read(specs):
            yield name, tensor
            self._advance(sizes[name])
