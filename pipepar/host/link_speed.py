"""Ping-pong measurement of the links between neighbouring ranks, and of the skew of their clocks.

The lower rank of a link sends pings, and the higher rank answers them. The answer to a small ping
is the time on the clock of the higher rank. If both directions take equally long, the answer was
made in the middle of the round trip, which gives the skew. Its uncertainty is half a round trip.
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
# The first round trips create connections and buffers, and do not count.
_WARM_UP: Final = 3
# No further round trip begins after this time.
_SECONDS: Final = 0.5
_DEPTH: Final = 2
_TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """The measured link between two neighbouring ranks."""

    first: int
    """The lower rank."""
    second: int
    """The rank after it."""
    latency: float
    """Seconds for a small micro-batch, one way; the median."""
    bandwidth: float
    """Bytes per second of a large micro-batch, one way; the median."""
    skew: float
    """Seconds by which the clock of the second rank is ahead of the clock of the first."""
    uncertainty: float
    """The largest error of `skew`, in seconds."""


@dataclass(frozen=True, slots=True)
class _Trip:
    """One round trip: a micro-batch to the neighbour, and its answer."""

    begin: float
    """Wall time when it began, in seconds."""
    seconds: float
    """Duration."""
    answered: float
    """First element of the answer; for a small micro-batch, wall time on the neighbour's clock."""


def measure_links(world: World, context: DeviceContext) -> list[LinkFacts]:
    """Measure the links between neighbouring ranks. *Collective.*

    Tensors are sent from device to device, as in a run. Links without a common rank are measured at
    the same time, as in a pipeline, so this takes a few seconds for any number of ranks. If a
    link cannot be measured within 30 s, the job is aborted.

    Args:
        world: all ranks.
        context: the devices of the ranks.

    Returns:
        The links, in order; the same on every rank.
    """
    pairs = list(pairwise(range(world.size)))
    both_ways = [
        Link(*ends, _DEPTH, *map(context.is_gpu, ends))
        for pair in pairs
        for ends in (pair, pair[::-1])
    ]
    receivers, senders = world.connect(both_ways, context.gpu)
    mine: LinkFacts | None = None
    # First the even pairs, then the odd ones, since a rank has two neighbours.
    for pair in sorted(pairs, key=lambda pair: pair[0] % 2):
        if world.rank not in pair:
            continue
        there = 2 * pairs.index(pair)
        first, second = pair
        peer = second if world.rank == first else first
        with deadline(world.abort, _TIMEOUT, _timeout_message(world, peer)):
            if world.rank == first:
                mine = _measure(first, senders[there], receivers[there + 1], context.device)
            else:
                _answer(senders[there + 1], receivers[there], context.device)
    ends: list[Sender | Receiver] = [*senders.values(), *receivers.values()]
    for channel in ends:
        channel.close()
    texts = world.all_gather(json.dumps(mine and dataclasses.asdict(mine)))
    return [LinkFacts(**fields) for fields in map(json.loads, texts) if fields]


def _timeout_message(world: World, peer: int) -> str:
    return (
        f"rank {world.rank} on {world.host} could not measure its link with rank {peer} on "
        f"{world.hosts[peer]} within {_TIMEOUT:.0f} s; check that rank {peer} is alive and that no "
        "firewall is between the hosts, and name the network to use (--mca btl_tcp_if_include "
        "NAME, UCX_NET_DEVICES)"
    )


def _measure(rank: int, there: Sender, back: Receiver, device: torch.device) -> LinkFacts:
    """Measure the link to the next rank, which must call `_answer`."""

    def zeros(size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=device)

    small = _round_trips(there, back, zeros(_SMALL_BYTES), _SMALL_TRIPS)
    large = _round_trips(there, back, zeros(_LARGE_BYTES), _LARGE_TRIPS)
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


def _round_trips(there: Sender, back: Receiver, payload: torch.Tensor, trips: int) -> list[_Trip]:
    """Send a stream of pings, each after the answer to the last, and return the round trips.

    The stream ends early if time runs out. The trips that only warm up are left out.
    """
    answers, made, deadline = back.receive(), list[_Trip](), math.inf
    for index in range(_WARM_UP + trips):
        if index == _WARM_UP:
            deadline = time.perf_counter() + _SECONDS
        wall, begin = time.time(), time.perf_counter()
        if begin > deadline:
            break
        there.send(MicroBatch(index, (payload,)))
        (answer,) = next(answers).values
        # Waits until the answer is on the GPU, also if it came from a CPU.
        answered = cast("torch.Tensor", answer).to(payload.device)[0].item()
        made.append(_Trip(wall, time.perf_counter() - begin, answered))
    there.end()
    for _ in answers:
        pass  # receives the end of the stream
    return made[_WARM_UP:]


def _answer(back: Sender, there: Receiver, device: torch.device) -> None:
    """Answer both streams of pings of `_measure`."""

    def timestamp(ping: torch.Tensor) -> torch.Tensor:
        ping.to(device)[0].item()  # waits until the ping is on the GPU
        return torch.full((_SMALL_BYTES // 8,), time.time(), dtype=torch.float64, device=device)

    _answer_stream(back, there, timestamp)
    # A ping from a CPU is still on the host.
    _answer_stream(back, there, lambda ping: ping.to(device))


def _answer_stream(
    back: Sender, there: Receiver, answer: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    for ping in there.receive():
        (payload,) = ping.values
        back.send(MicroBatch(ping.index, (answer(cast("torch.Tensor", payload)),)))
    back.end()
