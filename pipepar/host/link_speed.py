"""How fast the links between neighbours are, and how far apart their clocks: by ping-pong.

The lower rank of a link sends, the other one answers. The answer to a small micro-batch is the
time on the answering rank's clock; were the way out as long as the way back, it was written in the
middle of the trip, which gives the skew, and half a trip is as far as that can be wrong.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, cast

import torch

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.comm.group.timeout import deadline
from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext
from pipepar.microbatch import MicroBatch

_SMALL_BYTES: Final = 256
_LARGE_BYTES: Final = 4 * 2**20
_SMALL_TRIPS: Final = 100
_LARGE_TRIPS: Final = 20
# The first trips make connections and buffers, and do not count.
_WARM_UP: Final = 3
# A slow link is measured with fewer trips.
_SECONDS: Final = 0.5
_DEPTH: Final = 2
_PATIENCE: Final = 30.0


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What joins two neighbours in the pipeline, measured by ping-pong."""

    first: int
    """The lower rank."""
    second: int
    """The rank after it."""
    latency: float
    """Seconds for a small micro-batch, one way; the median."""
    bandwidth: float
    """Bytes a second of a large micro-batch, one way; the median."""
    skew: float
    """Seconds by which the second rank's clock is ahead of the first's."""
    uncertainty: float
    """Seconds by which `skew` may be wrong either way."""


@dataclass(frozen=True, slots=True)
class _Trip:
    """A micro-batch's way to the neighbour and the answer's way back."""

    begin: float
    """Wall time, seconds."""
    seconds: float
    """There and back."""
    answered: float
    """First element of the answer; to a small micro-batch, wall time on the neighbour's clock."""


def measure_links(world: World, context: DeviceContext) -> list[LinkFacts]:
    """Every link between neighbours, in order, on every rank. *Collective.*

    What travels begins and ends where the ranks compute, as in a run. Links that have no rank in
    common are measured at the same time, as they are used in a pipeline;
    so it takes a few seconds, however many ranks there are.
    """
    pairs = list(pairwise(range(world.size)))
    both_ways = [
        Link(*ends, _DEPTH, *map(context.is_gpu, ends))
        for pair in pairs
        for ends in (pair, pair[::-1])
    ]
    receivers, senders = world.connect(both_ways, context.gpu)
    mine: LinkFacts | None = None
    # Every other pair at a time, since a rank has two neighbours.
    for pair in sorted(pairs, key=lambda pair: pair[0] % 2):
        if world.rank not in pair:
            continue
        there = 2 * pairs.index(pair)
        first, second = pair
        peer = second if world.rank == first else first
        with deadline(world.abort, _PATIENCE, _silence(world, peer)):
            if world.rank == first:
                mine = _measure(first, senders[there], receivers[there + 1], context.device)
            else:
                _answer(senders[there + 1], receivers[there], context.device)
    ends: list[Sender | Receiver] = [*senders.values(), *receivers.values()]
    for channel in ends:
        channel.close()
    texts = world.all_gather(json.dumps(mine and dataclasses.asdict(mine)))
    return [LinkFacts(**fields) for fields in map(json.loads, texts) if fields]


def _silence(world: World, peer: int) -> str:
    return (
        f"rank {world.rank} on {world.host} exchanges micro-batches with rank {peer} on "
        f"{world.hosts[peer]} for {_PATIENCE:.0f} s without coming to an end; see that rank {peer} "
        "is alive and that no firewall is between the hosts, and name the network to use "
        "(--mca btl_tcp_if_include NAME, UCX_NET_DEVICES)"
    )


def _measure(rank: int, there: Sender, back: Receiver, device: torch.device) -> LinkFacts:
    def zeros(size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=device)

    small = _travel(there, back, zeros(_SMALL_BYTES), _SMALL_TRIPS)
    large = _travel(there, back, zeros(_LARGE_BYTES), _LARGE_TRIPS)
    shortest = min(small, key=lambda trip: trip.seconds)
    middle = shortest.begin + shortest.seconds / 2
    return LinkFacts(
        first=rank,
        second=rank + 1,
        latency=statistics.median(trip.seconds for trip in small) / 2,
        bandwidth=2 * _LARGE_BYTES / statistics.median(trip.seconds for trip in large),
        skew=shortest.answered - middle,
        uncertainty=shortest.seconds / 2,
    )


def _travel(there: Sender, back: Receiver, payload: torch.Tensor, trips: int) -> list[_Trip]:
    """One stream of pings, each sent when the one before has been answered."""
    answers, made, deadline = back.receive(), list[_Trip](), math.inf
    for index in range(_WARM_UP + trips):
        if index == _WARM_UP:
            deadline = time.perf_counter() + _SECONDS
        wall, begin = time.time(), time.perf_counter()
        if begin > deadline:
            break
        there.send(MicroBatch(index, (payload,)))
        (answer,) = next(answers).values
        # Waits for a GPU to have it, from a host too.
        answered = cast("torch.Tensor", answer).to(payload.device)[0].item()
        made.append(_Trip(wall, time.perf_counter() - begin, answered))
    there.end()
    for _ in answers:
        pass  # nothing is left but the end of the stream
    return made[_WARM_UP:]


def _answer(back: Sender, there: Receiver, device: torch.device) -> None:
    """The other side of `_measure`."""

    def stamped(ping: torch.Tensor) -> torch.Tensor:
        ping.to(device)[0].item()  # it has come, on a GPU too
        return torch.full((_SMALL_BYTES // 8,), time.time(), dtype=torch.float64, device=device)

    _return(back, there, stamped)
    # What came from a host lies there still.
    _return(back, there, lambda ping: ping.to(device))


def _return(back: Sender, there: Receiver, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for ping in there.receive():
        (payload,) = ping.values
        back.send(MicroBatch(ping.index, (answer(cast("torch.Tensor", payload)),)))
    back.end()
