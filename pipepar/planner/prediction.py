"""The prediction of a plan on given devices: seconds, bytes and a timeline.

The time of a stage is the work of its operations, divided by the speed of its device. The work is
measured in seconds, or counted. The time of a transfer follows from its bytes and its link. Bytes
and counted work are those of the example, scaled to the samples of a micro-batch.
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
"""The most micro-batches to simulate; enough for a pipeline to fill, run and drain."""


@dataclass(frozen=True, slots=True)
class Target:
    """The hardware and the load that a plan is made for."""

    hardware: Hardware
    """The devices, one for each rank, and their links."""
    micro_batch: int
    """Samples in a micro-batch."""
    depth: int
    """Micro-batches that may wait on each end of a channel."""
    samples: int | None = None
    """Number of samples to compute; None for `MICROBATCHES` micro-batches."""

    @property
    def microbatches(self) -> int:
        """Number of micro-batches, at least 1."""
        if self.samples is None:
            return MICROBATCHES
        return max(1, -(-self.samples // self.micro_batch))


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """The prediction of one stage."""

    device: DeviceCost
    """Its device."""
    memory: float
    """Bytes of its weights, its channels, and the inputs and outputs of its largest operation."""
    compute: float
    """Seconds to compute one micro-batch."""
    transfer: float
    """Seconds to receive one micro-batch, on the slowest of its channels; 0 for the first stage."""

    @property
    def slowest(self) -> float:
        """The longer of `compute` and `transfer`, in seconds."""
        return max(self.compute, self.transfer)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of a whole pipeline."""

    stages: tuple[StagePrediction, ...]
    """The stages, in order."""
    target: Target
    """The hardware and load of the plan."""
    timeline: Timeline
    """The timeline of at most the first `MICROBATCHES` micro-batches."""

    @property
    def bottleneck(self) -> float:
        """Seconds of the slowest stage or transfer, for one micro-batch."""
        return max(stage.slowest for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Seconds of the run: the simulated part, then one bottleneck for each micro-batch left."""
        return self.timeline.seconds + self._not_simulated * self.bottleneck

    @property
    def bound(self) -> float:
        """Seconds of a perfect pipeline with the same stages; see `trace.bound`."""
        slowest = max(stage.compute for stage in self.stages)
        return self.timeline.bound + self._not_simulated * slowest

    @property
    def efficiency(self) -> float:
        """The speed as a share of the speed of the perfect pipeline, 0 to 1."""
        return self.bound / self.seconds if self.seconds else 1.0

    @property
    def samples_per_second(self) -> float:
        """Samples per second of the whole run; 0 if the run takes no time."""
        target = self.target
        samples = target.samples or target.microbatches * target.micro_batch
        return samples / self.seconds if self.seconds else 0.0

    @property
    def _not_simulated(self) -> int:
        return max(0, self.target.microbatches - MICROBATCHES)


@dataclass(frozen=True, slots=True)
class ModelCost:
    """The cost of a model for one micro-batch."""

    layers: tuple[LayerCost, ...]
    """The cost of each node of the graph; a shared weight counts for each node that uses it."""
    sizes: Mapping[str, float]
    """Bytes of each value, by name."""
    first_use: tuple[float, ...]
    """For each node, bytes of the weights that no earlier node uses."""

    @property
    def sharing(self) -> tuple[LayerCost, ...]:
        """The layers, with a shared weight counted only for the first node that uses it."""
        pairs = zip(self.layers, self.first_use, strict=True)
        return tuple(replace(layer, weights=weights) for layer, weights in pairs)


def model_cost(
    graph: Graph,
    table: CutTable,
    micro_batch: int,
    measured: Mapping[str, Sequence[float]] | None = None,
) -> ModelCost:
    """Return the cost of a micro-batch.

    Args:
        graph: the captured model.
        table: its counted costs at the sizes of the example.
        micro_batch: samples in the micro-batch; counted costs except weights grow with them.
        measured: by kind of device, seconds of each compute node for this micro-batch; None to
            count operations instead.
    """
    scale = micro_batch / max(1, example_rows(graph))
    node_costs = table.node_costs
    works: Sequence[float | Mapping[str, float]]
    works = _works(measured) if measured else [work * scale for work in table.costs]
    weights = _weights(graph)
    columns = (graph.nodes, works, table.crossing, weights)
    layers = [
        LayerCost(
            work=work,
            weights=sum(own.values()),
            workspace=node_costs[node].touched * scale,
            crossing=None if crossing is None else crossing * scale,
        )
        for node, work, crossing, own in zip(*columns, strict=True)
    ]
    sizes = {node.name: cost.size * scale for node, cost in node_costs.items()}
    return ModelCost(tuple(layers), sizes, _first_use(weights))


def predict(plan: Plan, cost: ModelCost, target: Target) -> Prediction:
    """Return the prediction of a plan.

    Args:
        plan: the plan; stage k runs on device k of the target.
        cost: the cost of the model for a micro-batch of the size of the target.
        target: the hardware and load, with at least as many devices as the plan has stages.
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
    """Return the seconds that a device takes to compute layers."""
    return sum(layer.work_on(device.kind) for layer in layers) / device.speed


def _works(measured: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return for each node the seconds by kind of device."""
    return [dict(zip(measured, each, strict=True)) for each in zip(*measured.values(), strict=True)]


def stage_memory(stage: StagePlan, layers: Sequence[LayerCost], depth: int) -> float:
    """Return the bytes of memory of a stage, as in `partition`, but with each weight once.

    Args:
        stage: the stage.
        layers: the costs of the whole model, for one micro-batch.
        depth: micro-batches that may wait on each end of a channel.
    """
    ends = [layer.crossing or 0.0 for at in (stage.begin, stage.end) for layer in layers[at:][:1]]
    workspace = max(layer.workspace for layer in layers[stage.begin : stage.end])
    return stage.weight_bytes + depth * sum(ends) + workspace


def _weights(graph: Graph) -> list[dict[str, int]]:
    """Return for each node the bytes of the weights that it or its module uses, by name."""
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
    """Return for each node the bytes of the weights that no earlier node uses."""
    used: set[str] = set()
    sizes = []
    for own in weights:
        sizes.append(float(sum(size for name, size in own.items() if name not in used)))
        used |= own.keys()
    return tuple(sizes)


def _holders(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose targets are the weights, or the module, that a node uses."""
    held = [each for each in node.all_input_nodes if each.op == "get_attr"]
    return [node, *held] if node.op == "call_module" else held
