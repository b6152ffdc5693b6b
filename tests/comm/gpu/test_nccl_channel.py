"""The channel between two GPUs: values arrive unchanged, however late the GPUs are."""

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
    Results,
    disturb,
    feed,
    host,
    items,
    passed_on,
    run_hosts,
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
                del each  # free its memory as early as the channel allows
                yield
            edge.sender.end()
            yield

    return host(edge.host_channel.has_room, work())


def receives(edge: Edge, gpu: SimulatedGpu, results: Results, streams: int) -> Iterator[bool]:
    def work() -> Iterator[None]:
        random = Random(streams)
        for stream in range(streams):
            if stream:
                yield
            for microbatch in edge.received():
                disturb(gpu, random)
                results.read(gpu, microbatch.index, microbatch.values)
                del microbatch
                yield

    return host(edge.is_ready, work())


def hop(
    seed: int, streams: Sequence[Stream], depth: int = 2, slots: int | None = None
) -> tuple[Edge, Results]:
    """Send streams from a GPU to another one, and check what arrives; return edge and results."""
    random, scheduler = Random(seed), scheduler_of(seed)
    a, b = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    edge, results = (
        Edge.between(a, b, depth, random.choice([0, 0, 1 << 20]), slots=slots),
        Results(),
    )
    run_hosts(random, [sends(edge, a, streams), receives(edge, b, results, len(streams))])
    assert not scheduler.polled, "no host polls an event"
    scheduler.drain()
    scheduler.assert_ordered()
    starts = [sum(map(len, streams[:count])) for count in range(len(streams))]
    results.assert_equal([each for stream in streams for each in stream], starts)
    return edge, results


@pytest.mark.parametrize("seed", seeds(200))
def test_values_and_strides_arrive_unchanged(seed: int) -> None:
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
def test_some_micro_batches_without_tensors_on_the_gpu(seed: int) -> None:
    random = Random(seed)
    hop(seed, [[items(random, 3, resident=(0.0, 1.0)[k // 2 % 2]) for k in range(9)]])


def plain_items(*sizes: int, dtype: torch.dtype = torch.float32) -> Stream:
    """Return micro-batches of one tensor on the GPU, with these sizes in bytes."""
    return [
        [Item(torch.full((size // dtype.itemsize,), k + 1).to(dtype), lambda x: x, True)]
        for k, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("seed", seeds(20))
def test_sizes_that_grow_and_shrink(seed: int) -> None:
    hop(seed, [plain_items(40, 4000, 8, 0, 4000, 4004, 100_000, 12, 100_000)])


def test_a_spec_is_sent_only_when_it_changes() -> None:
    """A changed value in host memory is part of the spec of the host channel."""
    stream = [[*each, Item("same", lambda x: x, False)] for each in plain_items(*[64] * 20)]
    edge, _ = hop(0, [stream, stream, [[*stream[0], stream[0][0]]], stream])
    assert edge.host_channel.sent == 61
    # The first spec, that of the longer micro-batch, and the first one again.
    assert len(edge.host_channel.specs) == 3
    rows = [[each[0], Item(k, lambda x: x, False)] for k, each in enumerate(stream)]
    assert len(hop(1, [rows])[0].host_channel.specs) == 20


def test_announcements_do_not_depend_on_values_in_host_memory() -> None:
    stream = [[*each, *items(Random(k), 2, resident=0)] for k, each in enumerate(plain_items(8, 8))]
    edge, _ = hop(3, [stream])
    assert len({spec[0] for spec in edge.host_channel.specs}) == 1


NAMES = tuple("abcde")
MADE = tuple(range(len(NAMES), 2 * len(NAMES)))
"""Positions of the values that a stage computes, after those that arrive."""


def staged(
    gpu: SimulatedGpu, source: Iterator[MicroBatch], outlets: Sequence[Outlet], forwards: int
) -> Iterator[MicroBatch]:
    """Run a stage that forwards some values (the bits of `forwards`) and copies the others."""

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
    """The last stage also receives the results of the first one."""
    random, scheduler = Random(seed), scheduler_of(seed)
    torch.manual_seed(seed)
    a, b, c = (SimulatedGpu(scheduler, name) for name in "abc")
    depth, eager = random.choice([1, 2, 3]), random.choice([0, 0, 1 << 20])
    first, second = Edge.between(a, b, depth, eager), Edge.between(b, c, depth, eager)
    skip = Edge.between(a, c, 2 * depth, eager)
    sent = [items(random, len(NAMES)) for _ in range(8)]
    results, skip_results = Results(), Results()

    def last() -> Iterator[None]:
        for one, other in zip(second.received(), skip.received(), strict=True):
            results.read(c, one.index, one.values)
            skip_results.read(c, other.index, other.values)
            yield

    outlets = [Outlet(NAMES, MADE, first.sender), Outlet(NAMES, MADE, skip.sender)]
    arriving = arrivals([first.receiver], Tracer(1))
    forwards = random.randrange(1 << len(NAMES))
    middle = staged(b, arriving, [Outlet(NAMES, MADE, second.sender)], forwards)
    hosts = [
        host(
            lambda: first.host_channel.has_room() and skip.host_channel.has_room(),
            staged(a, feed(a, sent), outlets, forwards=0),
        ),
        host(lambda: first.is_ready() and second.host_channel.has_room(), middle),
        host(lambda: second.is_ready() and skip.is_ready(), last()),
    ]
    run_hosts(random, hosts)
    assert not scheduler.polled
    scheduler.drain()
    scheduler.assert_ordered()
    results.assert_equal(sent)
    skip_results.assert_equal(sent)


def test_invalid_announcements_are_refused() -> None:
    scheduler = Scheduler()
    edge = Edge.between(SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b"))
    edge.host_channel.sender.send(MicroBatch(0, ("\u4e00", None)))
    with pytest.raises(WireError, match=r"announced by '\u4e00', expected a spec.* same version"):
        next(edge.receiver.receive())
    edge.host_channel.sender.send(MicroBatch(0, (gpu_channel._text_of((None,)), None, None)))
    with pytest.raises(
        WireError, match=r"announced with 2 values, but its spec has 1.* same version"
    ):
        next(edge.receiver.receive())
