"""The channels of each rank, derived from a plan and its placement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.engine.loop import Outlet
from pipepar.host.device_context import DeviceContext
from pipepar.host.run_context import RunContext
from pipepar.plan.placement import Placement
from pipepar.plan.plan import Plan

Node: TypeAlias = int | Literal["source", "sink"]
"""A stage, by its number, or an end of the pipeline."""


def admission(stages: int, depth: int) -> int:
    """Return how many micro-batches the stages and the channels between them can hold.

    Each end of a channel between neighbours holds `depth`, and each stage computes one.

    Args:
        stages: number of stages, at least 1.
        depth: depth of the channels between neighbours, at least 1.
    """
    return 2 * depth * (stages - 1) + stages


@dataclass(frozen=True, slots=True)
class Edge:
    """One channel of a pipeline."""

    producer: Node
    """The sending stage, or "source"."""
    consumer: Node
    """The receiving stage, or "sink"."""
    names: tuple[str, ...]
    """Names of the values that the channel sends."""
    depth: int
    """Micro-batches that each end may hold."""
    sends_samples: bool
    """Whether samples and columns are sent too."""


def edges_of(plan: Plan, placement: Placement, depth: int) -> list[Edge]:
    """Return the channels of a pipeline, in the order in which all ranks connect them.

    There is no channel from the source to the first stage if both are on one rank, and none from
    the last stage to the sink if both are on one rank. A stage receives samples and columns from
    its nearest producer only. The depth of a channel that skips stages is multiplied by the
    distance, because the skipped stages hold micro-batches too.

    If the source and the sink are on one rank, but the last stage is on another, the channel to the
    sink closes a cycle. It cannot deadlock: it can hold `admission` micro-batches, and the source
    receives results so that no more than that are under way.

    Args:
        plan: the stages and the values that they exchange.
        placement: the ranks of the stages, the source and the sink.
        depth: micro-batches that each end of a channel between neighbours may hold.
    """
    crossing = plan.edges
    nearest = {
        stage: max(producer for producer, consumer in crossing if consumer == stage)
        for _, stage in crossing
    }
    edges = [
        Edge(
            producer, consumer, names, depth * (consumer - producer), nearest[consumer] == producer
        )
        for (producer, consumer), names in crossing.items()
    ]
    last = len(plan.stages) - 1
    if placement.enters_elsewhere:
        edges.append(Edge("source", 0, plan.inputs, depth, True))
    if placement.leaves_elsewhere:
        returns = placement.ends.sink == placement.ends.source
        room = admission(last + 1, depth) if returns else depth
        edges.append(Edge(last, "sink", plan.outputs, room, True))
    return edges


@dataclass(frozen=True, slots=True)
class Wiring:
    """The ends of the channels of one rank."""

    known: tuple[str, ...]
    """Names of the values known at the stage: those it receives, channel by channel, or the model's
    inputs if it has no inlet; then its own outputs. Empty for a rank without a stage."""
    inlets: tuple[Receiver, ...]
    """The channels into the stage."""
    outlets: tuple[Outlet, ...]
    """The channels out of the stage."""
    entry: Outlet | None
    """The channel from the source to the first stage. None if both are on one rank, and on ranks
    other than the source's."""
    exit: Receiver | None
    """The channel from the last stage to the sink. None if both are on one rank, and on ranks other
    than the sink's."""

    def positions(self, names: Iterable[str]) -> tuple[int, ...]:
        """Return the positions of values in `known`."""
        return tuple(map(self.known.index, names))

    def close(self) -> None:
        """Close this rank's ends of all channels, senders first. May be called twice."""
        ends: list[Sender | Receiver] = [outlet.channel for outlet in self.outlets]
        ends += [self.entry.channel] if self.entry else []
        ends += [*self.inlets, *([self.exit] if self.exit else [])]
        for end in ends:
            end.close()


def wire_up(run: RunContext, plan: Plan, placement: Placement, depth: int) -> Wiring:
    """Connect this rank to the others, and return its channels. *Collective.*

    NCCL is used only between two stages on GPUs, which form no cycle. At the source and at the
    sink, channels end in host memory.

    Args:
        run: all ranks and their devices. If its tracer stores spans, it also records the transfers
            between two GPUs.
        plan: the stages and the values that they exchange.
        placement: the ranks of the stages, the source and the sink.
        depth: micro-batches that each end of a channel between neighbours may hold.

    Raises:
        WireError: NCCL cannot connect two GPUs.
    """
    world, context = run.world, run.device_context
    watch = run.tracer.record_overlapping if run.tracer.keeps_spans else None
    edges = edges_of(plan, placement, depth)
    links = [_link(edge, placement, context) for edge in edges]
    receivers, senders = world.connect(links, context.gpu, watch)
    stage = placement.stage_of(world.rank)
    into = [channel for channel in receivers if edges[channel].consumer == stage]
    known = _known(plan, stage, [edges[channel] for channel in into])
    return Wiring(
        known=known,
        inlets=tuple(receivers[channel] for channel in into),
        outlets=tuple(
            _outlet(edges[channel], known, sender)
            for channel, sender in senders.items()
            if edges[channel].producer == stage
        ),
        entry=next(
            (
                _outlet(edges[channel], plan.inputs, sender)
                for channel, sender in senders.items()
                if edges[channel].producer == "source"
            ),
            None,
        ),
        exit=next(
            (end for channel, end in receivers.items() if edges[channel].consumer == "sink"), None
        ),
    )


def _link(edge: Edge, placement: Placement, context: DeviceContext) -> Link:
    """Return the ranks, the depth and the kinds of memory of a channel."""
    ends: Mapping[Node, int] = {
        "source": placement.ends.source,
        "sink": placement.ends.sink,
        **dict(enumerate(placement.ranks)),
    }
    producer, consumer = ends[edge.producer], ends[edge.consumer]
    return Link(
        producer,
        consumer,
        edge.depth,
        from_gpu=edge.producer != "source" and context.is_gpu(producer),
        to_gpu=edge.consumer != "sink" and context.is_gpu(consumer),
    )


def _known(plan: Plan, stage: int | None, into: Sequence[Edge]) -> tuple[str, ...]:
    """Return the names for `Wiring.known`; `into` are the channels into the stage."""
    if stage is None:
        return ()
    received = [name for edge in into for name in edge.names]
    return (*(received if into else plan.inputs), *plan.stages[stage].outputs)


def _outlet(edge: Edge, known: tuple[str, ...], sender: Sender) -> Outlet:
    positions = tuple(map(known.index, edge.names))
    return Outlet(edge.names, positions, sender, edge.sends_samples)
