"""From a plan to the channels of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.comm.gpu.nccl_channel import Watch
from pipepar.comm.world import World
from pipepar.engine.fault import FAULT
from pipepar.engine.loop import Inlet, Outlet
from pipepar.host.device_context import DeviceContext
from pipepar.plan.plan import Plan

Edges: TypeAlias = Mapping[tuple[int, int], tuple[str, ...]]
"""(producer, consumer) -> names of the values that cross."""


def edges_of(plan: Plan, carried: Sequence[str] = ()) -> dict[tuple[int, int], tuple[str, ...]]:
    """The edges of a plan, with values that travel along to every stage. *Local.*

    Args:
        plan: says which values the stages need.
        carried: further values of the source; each stage gets them from its nearest producer, but
            a `FAULT` from all of them: any may have failed, and the nearest need not have heard.
    """
    faults = tuple(name for name in carried if name == FAULT)
    edges = {edge: names + faults for edge, names in plan.edges.items()}
    for stage in range(1, len(plan.stages)):
        nearest = max(producer for producer, consumer in edges if consumer == stage)
        edges[nearest, stage] += tuple(name for name in carried if name != FAULT)
    return edges


def admission(stages: int, depth: int) -> int:
    """Micro-batches that channels of that depth and stages hold between source and sink. *Local.*

    Both ends of every channel hold `depth`, every stage computes one.
    """
    return 2 * depth * (stages - 1) + stages


@dataclass(frozen=True, slots=True)
class Wiring:
    """One stage's ends of all its channels."""

    inlets: tuple[Inlet, ...]
    """From earlier stages."""
    outlets: tuple[Outlet, ...]
    """To later stages, and on the last stage, where results return, to the first rank."""
    results: Receiver | None
    """On the first rank, where results return: the channel they come back by."""

    @property
    def channels(self) -> tuple[Receiver | Sender, ...]:
        """Every channel end, senders first, in the order to close them."""
        ends: list[Receiver | Sender] = [outlet.channel for outlet in self.outlets]
        ends += [inlet.channel for inlet in self.inlets]
        return (*ends, self.results) if self.results else tuple(ends)

    def close(self) -> None:
        """Close every channel. *Local*, may be called twice."""
        for channel in self.channels:
            channel.close()


def wire_up(
    world: World,
    plan: Plan,
    edges: Edges,
    depth: int,
    results_to_root: bool,
    context: DeviceContext,
    watch: Watch | None = None,
) -> Wiring:
    """Connect this rank's stage to the others. *Collective*; rank k owns stage k.

    Args:
        world: as many ranks as the plan has stages.
        plan: what the stages produce.
        edges: what crosses; an edge that skips stages is deeper by what those stages hold.
        depth: micro-batches under way on each end of a channel between neighbours.
        results_to_root: whether the model's outputs return to rank 0. Rank 0 feeds and takes at
            once; that cannot deadlock as long as it admits no more than `admission`, since this
            channel holds that many, and goes from host to host: what NCCL connects is acyclic.
        context: this rank's.
        watch: is told of every transfer between two GPUs; None to take no times of them.
    """
    last = len(plan.stages) - 1
    links = [
        Link(
            producer,
            consumer,
            depth * (consumer - producer),
            from_gpu=context.is_gpu(producer),
            to_gpu=context.is_gpu(consumer),
        )
        for producer, consumer in sorted(edges)
    ]
    returning = results_to_root and last > 0
    if returning:
        links.append(Link(last, 0, admission(last + 1, depth), from_gpu=context.is_gpu(last)))
    receivers, senders = world.connect(links, context.gpu, watch)
    rank = world.rank
    results = receivers.pop(last) if returning and rank == 0 else None
    outlets = [Outlet(edges[rank, k], sender) for k, sender in senders.items() if k > rank]
    if returning and rank == last:
        outlets.append(Outlet(plan.outputs, senders[0]))
    inlets = [Inlet(edges[k, rank], receiver) for k, receiver in receivers.items()]
    return Wiring(tuple(inlets), tuple(outlets), results)
