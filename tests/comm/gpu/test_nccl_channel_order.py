"""Who waits for whom in the channel between two GPUs, and what its transfers are timed by."""

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
from tests.helpers.gpu.stages import Edge, Item, Seen, computed, feed, items
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import Scheduler

SIZE = 64


def pair(scheduler: Scheduler) -> tuple[SimulatedGpu, SimulatedGpu]:
    return SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")


def send(edge: Edge, gpu: SimulatedGpu, count: int) -> None:
    """A stream of micro-batches, as far as the hosts go."""
    for index in range(count):
        edge.sender.send(MicroBatch(index, (computed(gpu, torch.full((SIZE,), index)),)))


def stream(edge: Edge, gpu: SimulatedGpu, count: int) -> None:
    send(edge, gpu, count)
    edge.sender.end()


def receive(edge: Edge, gpu: SimulatedGpu, seen: Seen) -> None:
    for microbatch in edge.receiver.receive():
        seen.look(gpu, microbatch.index, microbatch.values)


def expected(count: int) -> list[list[Item]]:
    return [[Item(torch.full((SIZE,), index), lambda x: x, True)] for index in range(count)]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_slow_consumer_holds_the_producers_gpu_and_no_host(slots: int) -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge, seen = Edge.between(a, b, depth=100, slots=slots), Seen()
    for count in (4, 12):  # with the first stream, every slot gets its memory
        stream(edge, a, count)
        seen = Seen()
        receive(edge, b, seen)
        assert not scheduler.polled
        waiting = sum(operation.label == "compute" for operation in a.compute.waiting)
        assert waiting == count
        if count == 12:
            scheduler.run(held=[b.compute])
            left = sum(operation.label == "compute" for operation in a.compute.waiting)
            # What is read and what travels, what is to leave, and one computed that has no place.
            assert waiting - left == 2 + slots + 1
            assert seen.values[0] == [None]
        scheduler.drain()
    scheduler.assert_ordered()
    seen.assert_equal(expected(12))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_producers_host_is_held_by_the_hosts_channel_alone(depth: int) -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge = Edge.between(a, b, depth, slots=1)
    send(edge, a, depth)
    assert not edge.told.has_room()
    assert not scheduler.executed
    scheduler.run()
    # Nobody has asked for anything: one is in the slot, and one is computed that has no place.
    left = sum(operation.label == "compute" for operation in a.compute.waiting)
    assert depth - left == min(depth, 2)
    # Asking for one takes its room, and posts the next one that has been announced.
    coming = edge.receiver.receive()
    next(coming)
    assert depth - len(edge.told._queue) == min(depth, 2)
    assert not scheduler.polled


def test_one_is_received_while_another_is_computed_and_no_more() -> None:
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge = Edge.between(a, b, depth=100)
    stream(edge, a, 6)
    coming, received = edge.receiver.receive(), edge.transports[1].transfers
    for index in range(6):
        assert next(coming).index == index
        assert len(received) == min(index + 2, 6)
    assert next(coming, None) is None


def test_what_is_announced_late_is_posted_when_it_is_asked_for() -> None:
    a, b = pair(Scheduler(eagerness=0))
    edge = Edge.between(a, b)
    coming, received = edge.receiver.receive(), edge.transports[1].transfers
    for index in range(4):
        assert not edge.receiver.ready()
        edge.sender.send(MicroBatch(index, (computed(a, torch.zeros(9)),)))
        assert edge.receiver.ready()
        assert next(coming).index == index
        assert len(received) == index + 1


def test_ready_also_with_what_was_taken_ahead() -> None:
    a, b = pair(Scheduler())
    edge = Edge.between(a, b, depth=100)
    send(edge, a, 2)
    coming = edge.receiver.receive()
    assert edge.receiver.ready()
    next(coming)
    assert not edge.told.receiver.ready()
    assert edge.receiver.ready()
    next(coming)
    assert not edge.receiver.ready()


def test_values_hold_until_the_next_is_asked_for() -> None:
    """A stage that reads them later reads what it should not, and is told so."""
    scheduler = Scheduler(eagerness=0)
    a, b = pair(scheduler)
    edge, seen = Edge.between(a, b, depth=100), Seen()
    stream(edge, a, 6)
    kept: list[MicroBatch] = []
    for microbatch in edge.receiver.receive():
        kept.append(microbatch)
        if len(kept) > 1:
            seen.look(b, 0, kept[-2].values)
    scheduler.drain()
    assert any("receive" in fault and "look" in fault for fault in scheduler.faults)


@pytest.mark.parametrize("seed", seeds(20))
def test_what_was_sent_may_be_changed(seed: int) -> None:
    scheduler = Scheduler(seed, POLICIES[seed % 5], 0.3)
    a, b = pair(scheduler)
    edge, seen = Edge.between(a, b, depth=100), Seen()
    value = computed(a, torch.zeros(SIZE, dtype=torch.int64))
    for index in range(6):
        a.launch(a.compute, lambda x, k=index: x.fill_(k), writes=[value])
        edge.sender.send(MicroBatch(index, (value,)))
    edge.sender.end()
    receive(edge, b, seen)
    scheduler.drain()
    scheduler.assert_ordered()
    seen.assert_equal(expected(6))


@pytest.mark.parametrize("policy", range(5))
def test_closing_waits_for_what_is_under_way(policy: int) -> None:
    scheduler = Scheduler(policy, POLICIES[policy], eagerness=0)
    a, b = pair(scheduler)
    edge, seen = Edge.between(a, b, depth=100), Seen()
    stream(edge, a, 5)
    receive(edge, b, seen)
    assert not scheduler.executed
    edge.sender.close()  # the transport refuses while anything is under way
    assert edge.transports[0].closed
    edge.receiver.close()
    assert edge.transports[1].closed
    del edge
    scheduler.drain()
    scheduler.assert_ordered()
    seen.assert_equal(expected(5))


@pytest.mark.parametrize("eager", [0, 1 << 20])
def test_a_receiver_that_closes_waits_for_what_was_posted(eager: int) -> None:
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
    told: dict[Kind, list[tuple[int, Any, Any]]] = {"send": [], "receive": []}

    def watch(kind: Kind, index: int, begin: Mark, end: Mark) -> None:
        told[kind].append((index, begin, end))

    edge = Edge.between(a, b, depth=100, watches=(watch, watch))
    sent = [items(Random(seed), 2, resident=k % 2) for k in range(6)]
    for each in feed(a, sent):
        edge.sender.send(each)
    edge.sender.end()
    receive(edge, b, Seen())
    scheduler.drain()
    for marks, transport in zip(told.values(), edge.transports, strict=True):
        assert [index for index, _, _ in marks] == sorted(index for index, _, _ in marks)
        assert len(marks) == len(transport.transfers) <= 3
        for (_, begin, end), transfer in zip(marks, transport.transfers, strict=True):
            actor = transfer.stream.actor
            clocks = begin.mark.after, transfer.after, end.mark.after
            ticks = [clock[actor] for clock in clocks if clock is not None]
            assert ticks == [ticks[0], ticks[0] + 1, ticks[0] + 2]
            assert begin.elapsed_time(end) > 0


@pytest.mark.parametrize("seed", seeds(6))
def test_hosts_in_threads_of_their_own(seed: int) -> None:
    scheduler = Scheduler(seed, POLICIES[seed % 5])
    a, b = pair(scheduler)
    told, (left, right) = InprocChannel(2), link(a, b)
    sender, receiver, seen = (
        GpuSender(told.sender, left, a, 2),
        GpuReceiver(told.receiver, right, b),
        Seen(),
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
            seen.look(b, microbatch.index, microbatch.values)
        receiver.close()

    def guarded(host: Callable[[], None]) -> None:
        try:
            host()
        except BaseException:
            told.abort()
            raise

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(guarded, host) for host in (produce, consume)]:
            done.result()
    scheduler.drain()
    scheduler.assert_ordered()
    seen.assert_equal(sent)


def released(wait: Callable[[], object], abort: Callable[[], None]) -> bool:
    """Whether a host that waits is released when another one gives up."""
    told: list[WireError] = []

    def host() -> None:
        try:
            wait()
        except WireError as error:
            told.append(error)

    thread = threading.Thread(target=host, daemon=True)
    thread.start()
    abort()
    thread.join(5)
    return bool(told)


@pytest.mark.parametrize("sends", [False, True])
def test_whoever_is_blocked_is_released_by_abort(sends: bool) -> None:
    a, b = pair(Scheduler())
    told, (left, right) = InprocChannel(1), link(a, b)
    sender, receiver = GpuSender(told.sender, left, a, 2), GpuReceiver(told.receiver, right, b)
    if sends:
        sender.send(MicroBatch(0, ()))
        assert released(lambda: sender.send(MicroBatch(1, ())), receiver.abort)
    else:
        assert released(lambda: list(receiver.receive()), sender.abort)
