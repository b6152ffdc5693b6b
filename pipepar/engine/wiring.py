"""From a plan and its placement to the channels of each rank."""

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
"""A stage, by its number, or one of the two ends of the job."""


def admission(stages: int, depth: int) -> int:
    """Micro-batches that channels of that depth and stages hold between source and sink.

    Both ends of every channel hold `depth`, every stage computes one.
    """
    return 2 * depth * (stages - 1) + stages


@dataclass(frozen=True, slots=True)
class Edge:
    """One channel of a pipeline."""

    producer: Node
    """Where its micro-batches come from."""
    consumer: Node
    """Where they go."""
    names: tuple[str, ...]
    """The values that cross."""
    depth: int
    """Micro-batches under way on each end."""
    beside: bool
    """Whether samples and columns go along."""


def edges_of(plan: Plan, placement: Placement, depth: int) -> list[Edge]:
    """The channels of a pipeline, in the order in which all ranks connect them.

    A stage gets samples and columns from its nearest producer only. A channel that skips stages is
    deeper by what those stages hold. Where the results return to the rank of the source, that
    channel closes a cycle: it cannot deadlock, since it holds as many micro-batches as `admission`
    allows under way. The source admits no more than that, and collects results whenever it has
    reached that number.

    Args:
        plan: says which values the stages exchange.
        placement: where the stages and the ends are.
        depth: micro-batches under way on each end of a channel between neighbours.
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
    """One rank's ends of all its channels."""

    known: tuple[str, ...]
    """Names of the values that arrive at its stage, channel by channel, and then of those that the
    stage makes; empty for a rank without a stage."""
    inlets: tuple[Receiver, ...]
    """Into its stage."""
    outlets: tuple[Outlet, ...]
    """Out of its stage."""
    entry: Outlet | None
    """At the source, where the first stage is on another rank: the channel to it."""
    exit: Receiver | None
    """At the sink, where the last stage is on another rank: the channel from it."""

    def positions(self, names: Iterable[str]) -> tuple[int, ...]:
        """Where values are among those known at the stage."""
        return tuple(map(self.known.index, names))

    def close(self) -> None:
        """Close every channel, senders first; may be called twice."""
        ends: list[Sender | Receiver] = [outlet.channel for outlet in self.outlets]
        ends += [self.entry.channel] if self.entry else []
        ends += [*self.inlets, *([self.exit] if self.exit else [])]
        for end in ends:
            end.close()


def wire_up(run: RunContext, plan: Plan, placement: Placement, depth: int) -> Wiring:
    """Connect this rank to the others. *Collective.*

    Args:
        run: all ranks, and which have a GPU. What NCCL connects is acyclic: the source and the sink
            are on hosts. Its tracer keeps the transfers between two GPUs if it keeps spans.
        plan: what the stages exchange.
        placement: where the stages and the ends are.
        depth: micro-batches under way on each end of a channel between neighbours.
    """
    world, context = run.world, run.device_context
    watch = run.tracer.record_beside if run.tracer.keeps_spans else None
    edges = edges_of(plan, placement, depth)
    links = [_link(edge, placement, context) for edge in edges]
    receivers, senders = world.connect(links, context.gpu, watch)
    stage = placement.stage_of(world.rank)
    into = [at for at, edge in enumerate(edges) if edge.consumer == stage and at in receivers]
    known = _known(plan, stage, [edges[at] for at in into])
    return Wiring(
        known=known,
        inlets=tuple(receivers[at] for at in into),
        outlets=tuple(
            _outlet(edge, known, senders[at])
            for at, edge in enumerate(edges)
            if edge.producer == stage and at in senders
        ),
        entry=next(
            (
                _outlet(edge, plan.inputs, senders[at])
                for at, edge in enumerate(edges)
                if edge.producer == "source" and at in senders
            ),
            None,
        ),
        exit=next(
            (
                receivers[at]
                for at, edge in enumerate(edges)
                if edge.consumer == "sink" and at in receivers
            ),
            None,
        ),
    )


def _link(edge: Edge, placement: Placement, context: DeviceContext) -> Link:
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
    if stage is None:
        return ()
    arriving = [name for edge in into for name in edge.names]
    return (*(arriving if into else plan.inputs), *plan.stages[stage].outputs)


def _outlet(edge: Edge, known: tuple[str, ...], sender: Sender) -> Outlet:
    positions = tuple(map(known.index, edge.names))
    return Outlet(edge.names, positions, sender, edge.beside)
