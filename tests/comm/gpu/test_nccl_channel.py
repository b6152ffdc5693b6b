"""The channel between two GPUs: however late they are, values arrive as they were sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import pytest
import torch

from pipepar.comm.gpu import nccl_channel as gpu_channel
from pipepar.engine.loop import Outlet, Program, arrivals, run
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Step
from pipepar.trace import Tracer
from tests.helpers.gpu.exchange import POLICIES
from tests.helpers.gpu.stages import (
    Edge,
    Item,
    Seen,
    disturb,
    drive,
    feed,
    items,
    passed_on,
    when,
)
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.scheduler import Scheduler

Stream = Sequence[Sequence[Item]]


def scheduler_of(seed: int) -> Scheduler:
    eagerness = Random(seed).choice([0.0, 0.3, 0.6, 0.9])
    return Scheduler(seed, POLICIES[seed % len(POLICIES)], eagerness)


def sends(edge: Edge, gpu: SimulatedGpu, streams: Sequence[Stream]) -> Iterator[bool]:
    def work() -> Iterator[None]:
        for stream in streams:
            for each in feed(gpu, stream):
                edge.sender.send(each)
                del each  # memory is let go of as soon as the channel allows it
                yield
            edge.sender.end()
            yield

    return when(edge.told.has_room, work())


def looks(edge: Edge, gpu: SimulatedGpu, seen: Seen, streams: int) -> Iterator[bool]:
    def work() -> Iterator[None]:
        random = Random(streams)
        for stream in range(streams):
            if stream:
                yield
            for microbatch in edge.received():
                disturb(gpu, random)
                seen.look(gpu, microbatch.index, microbatch.values)
                del microbatch
                yield

    return when(edge.is_ready, work())


def hop(
    seed: int, streams: Sequence[Stream], depth: int = 2, slots: int | None = None
) -> tuple[Edge, Seen]:
    """Send streams from a GPU to another one, and check what arrives."""
    random, scheduler = Random(seed), scheduler_of(seed)
    a, b = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    edge, seen = Edge.between(a, b, depth, random.choice([0, 0, 1 << 20]), slots=slots), Seen()
    drive(random, [sends(edge, a, streams), looks(edge, b, seen, len(streams))])
    assert not scheduler.polled, "no host has to look at an event"
    scheduler.drain()
    scheduler.assert_ordered()
    starts = [sum(map(len, streams[:count])) for count in range(len(streams))]
    seen.assert_equal([each for stream in streams for each in stream], starts)
    return edge, seen


@pytest.mark.parametrize("seed", seeds(200))
def test_values_arrive_as_they_lay(seed: int) -> None:
    random = Random(seed)
    torch.manual_seed(seed)
    sent = [items(random, random.randrange(4)) for _ in range(8)]
    edge, _ = hop(seed, [sent], random.choice([1, 2, 3]), random.choice([1, 2, 3]))
    edge.close()
    assert edge.transports[0].closed
    assert edge.transports[1].closed
    edge.close()


@pytest.mark.parametrize("seed", seeds(60))
def test_streams_follow_one_another(seed: int) -> None:
    random = Random(seed)
    streams = [
        [items(random, 2) for _ in range(random.randrange(4))] for _ in range(random.randint(2, 5))
    ]
    hop(seed, streams, random.choice([1, 3]))


@pytest.mark.parametrize("seed", seeds(20))
def test_microbatches_that_lie_on_the_host_among_others(seed: int) -> None:
    random = Random(seed)
    hop(seed, [[items(random, 3, resident=(0.0, 1.0)[k // 2 % 2]) for k in range(9)]])


def plain_items(*sizes: int, dtype: torch.dtype = torch.float32) -> Stream:
    """Micro-batches of one tensor on the GPU, of that many bytes."""
    return [
        [Item(torch.full((size // dtype.itemsize,), k + 1).to(dtype), lambda x: x, True)]
        for k, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("seed", seeds(20))
def test_sizes_that_grow_and_shrink(seed: int) -> None:
    hop(seed, [plain_items(40, 4000, 8, 0, 4000, 4004, 100_000, 12, 100_000)])


def test_what_lies_on_the_gpu_is_told_once() -> None:
    """And what differs on the host is told as often as it differs."""
    stream = [[*each, Item("same", lambda x: x, False)] for each in plain_items(*[64] * 20)]
    edge, _ = hop(0, [stream, stream, [[*stream[0], stream[0][0]]], stream])
    assert edge.told.sent == 61
    # One for each of the two ways that micro-batches lie, and one for the second's end.
    assert len(edge.told.specs) == 3
    rows = [[each[0], Item(k, lambda x: x, False)] for k, each in enumerate(stream)]
    assert len(hop(1, [rows])[0].told.specs) == 20


def test_texts_tell_nothing_of_values_on_the_host() -> None:
    """Host tensors lie in the hosts' channel as they are, and of them the text says nothing."""
    stream = [[*each, *items(Random(k), 2, resident=0)] for k, each in enumerate(plain_items(8, 8))]
    edge, _ = hop(3, [stream])
    assert len({spec[0] for spec in edge.told.specs}) == 1


NAMES = tuple("abcde")
MADE = tuple(range(len(NAMES), 2 * len(NAMES)))
"""Where a stage's own values are, behind those that arrive."""


def staged(
    gpu: SimulatedGpu, source: Iterator[MicroBatch], outlets: Sequence[Outlet], forwards: int
) -> Iterator[MicroBatch]:
    """A stage that passes on some values as they came, and computes the others anew."""

    def compute(values: tuple[object, ...], step: Step) -> list[object]:
        disturb(gpu, Random(forwards))
        return [
            value if forwards >> k & 1 else passed_on(gpu, value)  # type: ignore[arg-type]
            for k, value in enumerate(values)
        ]

    program = Program(tuple(range(len(NAMES))), compute)  # type: ignore[arg-type]
    yield from run([program], source, outlets, Tracer(0))


@pytest.mark.parametrize("seed", seeds(100))
def test_three_stages_and_an_edge_that_skips_one(seed: int) -> None:
    """The second stage passes on some values as they came; the last one also gets the first's."""
    random, scheduler = Random(seed), scheduler_of(seed)
    torch.manual_seed(seed)
    a, b, c = (SimulatedGpu(scheduler, name) for name in "abc")
    depth, eager = random.choice([1, 2, 3]), random.choice([0, 0, 1 << 20])
    first, second = Edge.between(a, b, depth, eager), Edge.between(b, c, depth, eager)
    skip = Edge.between(a, c, 2 * depth, eager)
    sent = [items(random, len(NAMES)) for _ in range(8)]
    seen, skipped = Seen(), Seen()

    def last() -> Iterator[None]:
        for one, other in zip(second.received(), skip.received(), strict=True):
            seen.look(c, one.index, one.values)
            skipped.look(c, other.index, other.values)
            yield

    outlets = [Outlet(NAMES, MADE, first.sender), Outlet(NAMES, MADE, skip.sender)]
    coming = arrivals([first.receiver], Tracer(1))
    forwards = random.randrange(1 << len(NAMES))
    middle = staged(b, coming, [Outlet(NAMES, MADE, second.sender)], forwards)
    hosts = [
        when(
            lambda: first.told.has_room() and skip.told.has_room(),
            staged(a, feed(a, sent), outlets, forwards=0),
        ),
        when(lambda: first.is_ready() and second.told.has_room(), middle),
        when(lambda: second.is_ready() and skip.is_ready(), last()),
    ]
    drive(random, hosts)
    assert not scheduler.polled
    scheduler.drain()
    scheduler.assert_ordered()
    seen.assert_equal(sent)
    skipped.assert_equal(sent)


def test_announcements_that_are_none_are_refused() -> None:
    scheduler = Scheduler()
    edge = Edge.between(SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b"))
    edge.told.sender.send(MicroBatch(0, ("\u4e00", None)))
    with pytest.raises(WireError, match=r"announced by '\u4e00', expected a spec.* same version"):
        next(edge.receiver.receive())
    edge.told.sender.send(MicroBatch(0, (gpu_channel._text_of((None,)), None, None)))
    with pytest.raises(
        WireError, match=r"announced with 2 values, but its spec has 1.* same version"
    ):
        next(edge.receiver.receive())
