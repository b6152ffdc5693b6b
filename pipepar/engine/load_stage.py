"""Each rank's stage gets its weights: its own bytes of the files, or what rank 0 sends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from pipepar.engine.shared_source import SharedSource
from pipepar.engine.stage import BareStage, Stage, weights_of
from pipepar.engine.weights_from_root import FromRoot
from pipepar.host.run_context import RunContext
from pipepar.model.capture.graph import Graph
from pipepar.model.weights.weight_source import Reading, Weights, WeightSpec
from pipepar.plan.placement import Placement
from pipepar.plan.plan import Plan


def load_stage(
    run: RunContext, shared: SharedSource, graph: Graph, plan: Plan, placement: Placement
) -> Stage | None:
    """This rank's stage with its weights, and no others. *Collective.*

    Args:
        run: all ranks. Its display shows the bytes that this rank has read.
        shared: where the weights lie.
        graph: the captured model.
        plan: a plan made for it.
        placement: which rank runs which stage.

    Raises:
        PipeparError: see `Stage.load`; raised once, by the lowest rank that has the problem.
    """
    world, device, from_root = run.world, run.device_context.device, shared.from_root
    specs = [_specs_of(graph, plan, placement.stage_of(rank)) for rank in range(world.size)]
    mine, index = specs[world.rank], placement.stage_of(world.rank)
    read = [spec for stage in specs for spec in stage] if from_root and world.is_root else mine
    with run.display.weights(sum(spec.nbytes for spec in read)) as advance:
        place: Weights = _Counted(shared.source.weights, advance)
        if from_root:
            place = FromRoot(world, place, specs)
        world.together(lambda: place.check(mine))
        # A rank that fails before it reads would leave rank 0 with a send that no rank receives.
        bare = world.together(
            lambda: None if index is None else BareStage.cut(graph, plan, index, device)
        )
        return world.together(lambda: bare.filled(place) if bare else _nothing(place))


def _specs_of(graph: Graph, plan: Plan, stage: int | None) -> list[WeightSpec]:
    return [] if stage is None else weights_of(graph, plan.stages[stage])


def _nothing(place: Weights) -> None:
    """Take part in the reading without a stage: the root sends the others their weights."""
    deque(place.read([]), maxlen=0)


class _Counted:
    """Weights that tell how many bytes of them have been read."""

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
