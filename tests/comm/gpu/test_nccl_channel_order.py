"""The channel between two GPUs: waits of hosts and GPUs, and the times of transfers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.comm.gpu.nccl_channel import GpuReceiver, GpuSender
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch
from pipepar.trace import Kind, Mark
from tests.helpers.gpu.exchange import POLICIES
from tests.helpers.gpu.stages import Edge, Item, Results, computed, feed, items
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import Scheduler

SIZE = 64


def pair(scheduler: Scheduler) -> tuple[SimulatedGpu, SimulatedGpu]:
    return SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")


def send(edge: Edge, gpu: SimulatedGpu, count: int) -> None:
    """Send micro-batches without the end of the stream."""
    for index in range(count):
        edge.sender.send(MicroBatch(index, (computed(gpu, torch.full((SIZE,), index)),)))


def stream(edge: Edge, gpu: SimulatedGpu, count: int) -> None:
    send(edge, gpu, count)
    edge.sender.end()


def receive(edge: Edge, gpu: SimulatedGpu, results: Results) -> None:
    for microbatch in edge.receiver.receive():
        results.read(gpu, microbatch.index, microbatch.values)


def expected(count: int) -> list[list[Item]]:
    return [[Item(torch.full((SIZE,), index), lambda x: x, True)] for index in range(count)]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_slow_consumer_blocks_the_gpu_of_the_producer_but_no_host(slots: int) -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge, results = Edge.between(a, b, depth=100, slots=slots), Results()
    for count in (4, 12):  # the first stream allocates the memory of all slots
        stream(edge, a, count)
        results = Results()
        receive(edge, b, results)
        assert not scheduler.polled
        waiting = sum(operation.label == "compute" for operation in a.compute.waiting)
        assert waiting == count
        if count == 12:
            scheduler.run(held=[b.compute])
            left = sum(operation.label == "compute" for operation in a.compute.waiting)
            # In two slots of the receiver, in the slots of the sender, and one without a slot.
            assert waiting - left == 2 + slots + 1
            assert results.values[0] == [None]
        scheduler.drain()
    scheduler.assert_ordered()
    results.assert_equal(expected(12))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_only_the_host_channel_blocks_the_host_of_the_producer(depth: int) -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge = Edge.between(a, b, depth, slots=1)
    send(edge, a, depth)
    assert not edge.host_channel.has_room()
    assert not scheduler.executed
    scheduler.run()
    # The receiver has requested none: one is in the slot, and one is computed without a slot.
    left = sum(operation.label == "compute" for operation in a.compute.waiting)
    assert depth - left == min(depth, 2)
    # A request frees the place of one in the host channel, and posts the next announced one.
    arriving = edge.receiver.receive()
    next(arriving)
    assert depth - len(edge.host_channel._queue) == min(depth, 2)
    assert not scheduler.polled


def test_one_receive_is_posted_ahead_of_the_computed_micro_batch() -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge = Edge.between(a, b, depth=100)
    stream(edge, a, 6)
    arriving, received = edge.receiver.receive(), edge.transports[1].transfers
    for index in range(6):
        assert next(arriving).index == index
        assert len(received) == min(index + 2, 6)
    assert next(arriving, None) is None


def test_a_late_announcement_is_posted_on_request() -> None:
    a, b = pair(Scheduler(eagerness=0))
    edge = Edge.between(a, b)
    arriving, received = edge.receiver.receive(), edge.transports[1].transfers
    for index in range(4):
        assert not edge.receiver.ready()
        edge.sender.send(MicroBatch(index, (computed(a, torch.zeros(9)),)))
        assert edge.receiver.ready()
        assert next(arriving).index == index
        assert len(received) == index + 1


def test_ready_counts_posted_micro_batches() -> None:
    a, b = pair(Scheduler())
    edge = Edge.between(a, b, depth=100)
    send(edge, a, 2)
    arriving = edge.receiver.receive()
    assert edge.receiver.ready()
    next(arriving)
    assert not edge.host_channel.receiver.ready()
    assert edge.receiver.ready()
    next(arriving)
    assert not edge.receiver.ready()


def test_reading_values_after_the_next_request_is_a_race() -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge, results = Edge.between(a, b, depth=100), Results()
    stream(edge, a, 6)
    kept: list[MicroBatch] = []
    for microbatch in edge.receiver.receive():
        kept.append(microbatch)
        if len(kept) > 1:
            results.read(b, 0, kept[-2].values)
    scheduler.drain()
    assert any("receive" in fault and "store result" in fault for fault in scheduler.faults)


@pytest.mark.parametrize("seed", seeds(20))
def test_a_sent_tensor_may_be_overwritten(seed: int) -> None:
    scheduler = Scheduler(seed, POLICIES[seed % 5], 0.3)
    a, b = pair(scheduler)
    edge, results = Edge.between(a, b, depth=100), Results()
    value = computed(a, torch.zeros(SIZE, dtype=torch.int64))
    for index in range(6):
        a.launch(a.compute, lambda x, k=index: x.fill_(k), writes=[value])
        edge.sender.send(MicroBatch(index, (value,)))
    edge.sender.end()
    receive(edge, b, results)
    scheduler.drain()
    scheduler.assert_ordered()
    results.assert_equal(expected(6))


@pytest.mark.parametrize("policy", range(5))
def test_close_waits_for_transfers_under_way(policy: int) -> None:
    scheduler = Scheduler(policy, POLICIES[policy], eagerness=0)
    a, b = pair(scheduler)
    edge, results = Edge.between(a, b, depth=100), Results()
    stream(edge, a, 5)
    receive(edge, b, results)
    assert not scheduler.executed
    edge.sender.close()  # the transport raises an error while transfers are under way
    assert edge.transports[0].closed
    edge.receiver.close()
    assert edge.transports[1].closed
    del edge
    scheduler.drain()
    scheduler.assert_ordered()
    results.assert_equal(expected(5))


@pytest.mark.parametrize("eager", [0, 1 << 20])
def test_a_closing_receiver_waits_for_posted_receives(eager: int) -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge = Edge.between(a, b, depth=100, eager=eager)
    send(edge, a, 2)
    next(edge.receiver.receive())
    edge.receiver.close()
    assert edge.transports[1].turn == 2


@pytest.mark.parametrize("seed", seeds(10))
def test_marks_enclose_a_transfer(seed: int) -> None:
    scheduler = Scheduler(seed, POLICIES[seed % 5], 0.3)
    a, b = pair(scheduler)
    recorded: dict[Kind, list[tuple[int, Any, Any]]] = {"send": [], "receive": []}

    def watch(kind: Kind, index: int, begin: Mark, end: Mark) -> None:
        recorded[kind].append((index, begin, end))

    edge = Edge.between(a, b, depth=100, watches=(watch, watch))
    sent = [items(Random(seed), 2, resident=k % 2) for k in range(6)]
    for each in feed(a, sent):
        edge.sender.send(each)
    edge.sender.end()
    receive(edge, b, Results())
    scheduler.drain()
    for marks, transport in zip(recorded.values(), edge.transports, strict=True):
        assert [index for index, _, _ in marks] == sorted(index for index, _, _ in marks)
        assert len(marks) == len(transport.transfers) <= 3
        for (_, begin, end), transfer in zip(marks, transport.transfers, strict=True):
            actor = transfer.stream.actor
            clocks = begin.mark.after, transfer.after, end.mark.after
            ticks = [clock[actor] for clock in clocks if clock is not None]
            assert ticks == [ticks[0], ticks[0] + 1, ticks[0] + 2]
            assert begin.elapsed_time(end) > 0


@pytest.mark.parametrize("seed", seeds(6))
def test_hosts_in_separate_threads(seed: int) -> None:
    scheduler = Scheduler(seed, POLICIES[seed % 5])
    a, b = pair(scheduler)
    host_channel, (left, right) = InprocChannel(2), link(a, b)
    sender, receiver, results = (
        GpuSender(host_channel.sender, left, a, 2),
        GpuReceiver(host_channel.receiver, right, b),
        Results(),
    )
    random = Random(seed)
    sent = [items(random, 3) for _ in range(20)]

    def produce() -> None:
        for each in feed(a, sent):
            sender.send(each)
        sender.end()
        sender.close()

    def consume() -> None:
        for microbatch in receiver.receive():
            results.read(b, microbatch.index, microbatch.values)
        receiver.close()

    def guarded(host: Callable[[], None]) -> None:
        try:
            host()
        except BaseException:
            host_channel.abort()
            raise

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(guarded, host) for host in (produce, consume)]:
            done.result()
    scheduler.drain()
    scheduler.assert_ordered()
    results.assert_equal(sent)


def released(wait: Callable[[], object], abort: Callable[[], None]) -> bool:
    """Return whether a blocked host is released by an abort of the other one."""
    raised: list[WireError] = []

    def block() -> None:
        try:
            wait()
        except WireError as error:
            raised.append(error)

    thread = threading.Thread(target=block, daemon=True)
    thread.start()
    abort()
    thread.join(5)
    return bool(raised)


@pytest.mark.parametrize("sends", [False, True])
def test_abort_releases_a_blocked_host(sends: bool) -> None:
    a, b = pair(Scheduler())
    host_channel, (left, right) = InprocChannel(1), link(a, b)
    sender, receiver = (
        GpuSender(host_channel.sender, left, a, 2),
        GpuReceiver(host_channel.receiver, right, b),
    )
    if sends:
        sender.send(MicroBatch(0, ()))
        assert released(lambda: sender.send(MicroBatch(1, ())), receiver.abort)
    else:
        assert released(lambda: list(receiver.receive()), sender.abort)
