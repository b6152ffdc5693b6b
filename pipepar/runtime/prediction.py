"""What a plan would take on devices that are only described: seconds, bytes and a timeline.

Nothing is measured. A stage's seconds are its operations over its device's speed, a transfer's
are its bytes over its link; both are counted at the example's sizes, and grow with the rows of a
micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from torch import fx

from pipepar.model.crossing import CutTable
from pipepar.model.graph import Graph
from pipepar.plan.cluster import Cluster
from pipepar.plan.costs import DeviceCost, LayerCost
from pipepar.plan.plan import Plan, StagePlan
from pipepar.plan.simulate import Timeline, simulate

MICROBATCHES: Final = 64
"""As many are simulated: enough that filling and draining count for little."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to plan for."""

    cluster: Cluster
    """Its devices, one a rank, and their links."""
    micro_batch: int
    """Samples that travel together."""
    depth: int = 2
    """Micro-batches that may wait on each end of a channel."""


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """What one stage would take."""

    device: DeviceCost
    """What it runs on."""
    memory: float
    """Bytes: its weights, what its channels hold, what its largest operation reads and makes."""
    compute: float
    """Seconds for a micro-batch."""
    transfer: float
    """Seconds that what it receives is on its way, the longest of its channels; 0 for the first."""

    @property
    def slowest(self) -> float:
        """Seconds between micro-batches if nothing else were slower."""
        return max(self.compute, self.transfer)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a whole pipeline would take."""

    stages: tuple[StagePrediction, ...]
    """In order."""
    micro_batch: int
    """Samples that travel together."""
    timeline: Timeline
    """A run of `MICROBATCHES` micro-batches."""

    @property
    def bottleneck(self) -> float:
        """Seconds of the slowest stage or transfer."""
        return max(stage.slowest for stage in self.stages)

    @property
    def samples_per_second(self) -> float:
        """Over the whole timeline, filling and draining too; 0 if there is nothing to compute."""
        seconds = self.timeline.seconds
        return MICROBATCHES * self.micro_batch / seconds if seconds else 0.0


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs for one micro-batch of the target's."""

    layers: tuple[LayerCost, ...]
    """One for each node of the graph."""
    sizes: Mapping[str, float]
    """Bytes of each value, by name."""


def model_cost(graph: Graph, table: CutTable, micro_batch: int) -> ModelCost:
    """Count what a micro-batch of so many samples costs. *Local.*

    Args:
        graph: the captured model.
        table: its costs at the example's sizes.
        micro_batch: samples; all but the weights grows with them.
    """
    scale = micro_batch / _rows(graph)
    counted = table.counted
    columns = (graph.nodes, table.costs, table.crossing, _weight_bytes(graph))
    layers = [
        LayerCost(
            work=work * scale,
            weights=weights,
            workspace=counted[node].touched * scale,
            crossing=None if crossing is None else crossing * scale,
        )
        for node, work, crossing, weights in zip(*columns, strict=True)
    ]
    sizes = {node.name: cost.size * scale for node, cost in counted.items()}
    return ModelCost(tuple(layers), sizes)


def predict(plan: Plan, cost: ModelCost, target: Target) -> Prediction:
    """Say what a plan would take. *Local.*

    Args:
        plan: stage k runs on the target's device k.
        cost: the model's, for the target's micro-batch.
        target: at least as many devices as the plan has stages.
    """
    cluster = target.cluster
    transfer = {
        edge: cluster.link(*edge).seconds(sum(cost.sizes[name] for name in names))
        for edge, names in plan.edges.items()
    }
    stages = tuple(
        StagePrediction(
            device=device,
            memory=_memory(stage, cost.layers, target.depth),
            compute=_work(stage, cost.layers, device.kind) / device.speed,
            transfer=max((t for (_, to), t in transfer.items() if to == stage.index), default=0.0),
        )
        for stage, device in zip(plan.stages, cluster.devices, strict=False)
    )
    compute = [stage.compute for stage in stages]
    timeline = simulate(compute, transfer, MICROBATCHES, target.depth)
    return Prediction(stages, target.micro_batch, timeline)


def _work(stage: StagePlan, layers: Sequence[LayerCost], kind: str) -> float:
    return sum(layer.work_on(kind) for layer in layers[stage.begin : stage.end])


def _memory(stage: StagePlan, layers: Sequence[LayerCost], depth: int) -> float:
    """Bytes that a stage takes, as the partition counts them, but each weight once."""
    ends = [layer.crossing or 0.0 for at in (stage.begin, stage.end) for layer in layers[at:][:1]]
    workspace = max(layer.workspace for layer in layers[stage.begin : stage.end])
    return stage.weight_bytes + depth * sum(ends) + workspace


def _rows(graph: Graph) -> int:
    """Samples in the example: the rows of its first tensor that has any."""
    return next((tensor.shape[0] for tensor in graph.example if tensor.dim()), 1)


def _weight_bytes(graph: Graph) -> list[int]:
    """Bytes of the weights that each node uses, itself or through a module that it calls.

    What two nodes share counts for both: a cut between them puts it into two stages.
    """
    below: dict[str, dict[str, int]] = defaultdict(dict)
    for name, spec in graph.weights.items():
        for target in accumulate(name.split("."), "{}.{}".format):
            below[target][spec.name] = spec.nbytes
    return [
        sum(sum(below[str(holder.target)].values()) for holder in _holders(node))
        for node in graph.nodes
    ]


def _holders(node: fx.Node) -> list[fx.Node]:
    held = [each for each in node.all_input_nodes if each.op == "get_attr"]
    return [node, *held] if node.op == "call_module" else held
