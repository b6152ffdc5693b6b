"""What a plan would take on given devices: seconds, bytes and a timeline.

A stage's seconds are those of its operations, measured, or their counted work over its device's
speed; a transfer's are its bytes over its link. What is counted is counted at the example's sizes,
and grows with the rows of a micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from torch import fx

from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable
from pipepar.model.split.operations import example_rows
from pipepar.plan.costs import DeviceCost, LayerCost
from pipepar.plan.hardware import Hardware
from pipepar.plan.plan import Plan, StagePlan
from pipepar.plan.simulate import Timeline, simulate

MICROBATCHES: Final = 64
"""At most as many are simulated: enough to see a pipeline fill, run and drain."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to plan for."""

    hardware: Hardware
    """Its devices, one a rank, and their links."""
    micro_batch: int
    """Samples that travel together."""
    depth: int
    """Micro-batches that may wait on each end of a channel."""
    samples: int | None = None
    """How many there are to compute; None for as many as make `MICROBATCHES`."""

    @property
    def microbatches(self) -> int:
        """How many there are, at least 1."""
        if self.samples is None:
            return MICROBATCHES
        return max(1, -(-self.samples // self.micro_batch))


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
    target: Target
    """What it was planned for."""
    timeline: Timeline
    """Of the first `MICROBATCHES` micro-batches, or of all."""

    @property
    def bottleneck(self) -> float:
        """Seconds of the slowest stage or transfer."""
        return max(stage.slowest for stage in self.stages)

    @property
    def seconds(self) -> float:
        """For all micro-batches: as simulated, and then one after the other at the bottleneck."""
        return self.timeline.seconds + self._beyond * self.bottleneck

    @property
    def bound(self) -> float:
        """Seconds that a perfect pipeline would take for the same stages; see `trace.bound`."""
        slowest = max(stage.compute for stage in self.stages)
        return self.timeline.bound + self._beyond * slowest

    @property
    def efficiency(self) -> float:
        """Achieved / bound, as a share of the perfect pipeline's speed."""
        return self.bound / self.seconds if self.seconds else 1.0

    @property
    def samples_per_second(self) -> float:
        """Over the whole run, filling and draining too; 0 if there is nothing to compute."""
        target = self.target
        samples = target.samples or target.microbatches * target.micro_batch
        return samples / self.seconds if self.seconds else 0.0

    @property
    def _beyond(self) -> int:
        """Micro-batches that are not simulated."""
        return max(0, self.target.microbatches - MICROBATCHES)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs for one micro-batch of the target's."""

    layers: tuple[LayerCost, ...]
    """One for each node of the graph; a weight that several use counts for each."""
    sizes: Mapping[str, float]
    """Bytes of each value, by name."""
    first_use: tuple[float, ...]
    """For each node, bytes of the weights that no node before it uses."""

    @property
    def sharing(self) -> tuple[LayerCost, ...]:
        """The layers, as if all that use a weight were in one stage."""
        pairs = zip(self.layers, self.first_use, strict=True)
        return tuple(replace(layer, weights=weights) for layer, weights in pairs)


def model_cost(
    graph: Graph,
    table: CutTable,
    micro_batch: int,
    measured: Mapping[str, Sequence[float]] | None = None,
) -> ModelCost:
    """What a micro-batch of so many samples costs.

    Args:
        graph: the captured model.
        table: its costs at the example's sizes.
        micro_batch: samples; all that is counted but the weights grows with them.
        measured: by kind of device, seconds of each compute node for that micro-batch; None to
            count operations instead.
    """
    scale = micro_batch / max(1, example_rows(graph))
    counted = table.counted
    works: Sequence[float | Mapping[str, float]]
    works = _works(measured) if measured else [work * scale for work in table.costs]
    weights = _weights(graph)
    columns = (graph.nodes, works, table.crossing, weights)
    layers = [
        LayerCost(
            work=work,
            weights=sum(own.values()),
            workspace=counted[node].touched * scale,
            crossing=None if crossing is None else crossing * scale,
        )
        for node, work, crossing, own in zip(*columns, strict=True)
    ]
    sizes = {node.name: cost.size * scale for node, cost in counted.items()}
    return ModelCost(tuple(layers), sizes, _first_use(weights))


def predict(plan: Plan, cost: ModelCost, target: Target) -> Prediction:
    """Say what a plan would take.

    Args:
        plan: stage k runs on the target's device k.
        cost: the model's, for the target's micro-batch.
        target: at least as many devices as the plan has stages.
    """
    hardware = target.hardware
    transfer = {
        edge: hardware.link(*edge).seconds(sum(cost.sizes[name] for name in names))
        for edge, names in plan.edges.items()
    }
    stages = tuple(
        StagePrediction(
            device=device,
            memory=stage_memory(stage, cost.layers, target.depth),
            compute=seconds_on(device, cost.layers[stage.begin : stage.end]),
            transfer=max((t for (_, to), t in transfer.items() if to == stage.index), default=0.0),
        )
        for stage, device in zip(plan.stages, hardware.devices, strict=False)
    )
    compute = [stage.compute for stage in stages]
    shown = min(target.microbatches, MICROBATCHES)
    return Prediction(stages, target, simulate(compute, transfer, shown, target.depth))


def seconds_on(device: DeviceCost, layers: Sequence[LayerCost]) -> float:
    """Time that a device computes these layers."""
    return sum(layer.work_on(device.kind) for layer in layers) / device.speed


def _works(measured: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [dict(zip(measured, each, strict=True)) for each in zip(*measured.values(), strict=True)]


def stage_memory(stage: StagePlan, layers: Sequence[LayerCost], depth: int) -> float:
    """Bytes that a stage takes, as the partition counts them, but each weight once.

    Args:
        stage: what the plan says of it.
        layers: the whole model's, for one micro-batch.
        depth: micro-batches that may wait on each end of a channel.
    """
    ends = [layer.crossing or 0.0 for at in (stage.begin, stage.end) for layer in layers[at:][:1]]
    workspace = max(layer.workspace for layer in layers[stage.begin : stage.end])
    return stage.weight_bytes + depth * sum(ends) + workspace


def _weights(graph: Graph) -> list[dict[str, int]]:
    """For each node, bytes of the weights that it uses, itself or through a module, by name."""
    below: dict[str, dict[str, int]] = defaultdict(dict)
    for name, spec in graph.weights.items():
        for target in accumulate(name.split("."), "{}.{}".format):
            below[target][spec.name] = spec.nbytes
    return [
        {
            name: size
            for holder in _holders(node)
            for name, size in below[str(holder.target)].items()
        }
        for node in graph.nodes
    ]


def _first_use(weights: Sequence[Mapping[str, int]]) -> tuple[float, ...]:
    known: set[str] = set()
    sizes = []
    for own in weights:
        sizes.append(float(sum(size for name, size in own.items() if name not in known)))
        known |= own.keys()
    return tuple(sizes)


def _holders(node: fx.Node) -> list[fx.Node]:
    held = [each for each in node.all_input_nodes if each.op == "get_attr"]
    return [node, *held] if node.op == "call_module" else held
