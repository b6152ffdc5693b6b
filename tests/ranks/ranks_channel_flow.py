"""The flow through an MPI channel: its bound, its order, and the life of what is received."""

import resource
import threading
import time

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.microbatch import MicroBatch
from tests.helpers.mpi_channel import assert_same, ends, transfer
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi(min_size=2), on_ranks(2, 3)]


@pytest.mark.parametrize("half", [20_000, pytest.param(500_000, marks=pytest.mark.full)])
def test_many_microbatches_do_not_grow_memory(world: World, half: int) -> None:
    """The second half needs no more memory than the first."""
    if world.size > 2:
        pytest.skip("a third rank would add nothing")
    tensor = torch.arange(4)
    peaks = []
    with ends(world) as (receiver, sender):
        for _ in range(2):
            if sender is not None:
                for index in range(half):
                    sender.send(MicroBatch(index, (tensor,)))
                sender.end()
            if receiver is not None:
                assert sum(1 for _ in receiver.receive()) == half
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # In KiB. The smallest Python object that could leak per micro-batch takes 24 bytes.
    assert peaks[1] - peaks[0] < min(4096, 24 * half // 1024)


def test_a_full_channel_blocks_the_sender(world: World) -> None:
    depth, sent = 3, []
    with ends(world, depth) as (receiver, sender):
        if sender is not None:

            def work() -> None:
                for index in range(20):
                    sender.send(MicroBatch(index, (torch.zeros(1000),)))
                    sent.append(index)
                sender.end()

            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(0.5)
            assert depth <= len(sent) <= 2 * depth
            MPI.COMM_WORLD.send(None, 1, tag=99)
            thread.join()
        if receiver is not None:
            MPI.COMM_WORLD.recv(source=0, tag=99)
            assert len(list(receiver.receive())) == 20


def test_receiver_ready_does_not_wait(world: World) -> None:
    with ends(world) as (receiver, sender):
        if receiver is not None:
            assert not receiver.ready()
        MPI.COMM_WORLD.Barrier()
        if sender is not None:
            sender.send(MicroBatch(0, (1,)))
            sender.end()
        if receiver is not None:
            while not receiver.ready():
                time.sleep(0.001)
            assert [microbatch.values for microbatch in receiver.receive()] == [(1,)]


def test_sender_ready_until_the_channel_is_full(world: World) -> None:
    with ends(world, depth=2) as (receiver, sender):
        if sender is not None:
            sent = 0
            while sender.ready():
                sender.send(MicroBatch(sent, (torch.zeros(1_000_000),)))
                sent += 1
                time.sleep(0.05)
            assert 2 <= sent <= 4  # each end holds `depth`
            MPI.COMM_WORLD.send(sent, 1, tag=98)
            while not sender.ready():
                time.sleep(0.001)
            sender.end()
        if receiver is not None:
            sent = MPI.COMM_WORLD.recv(source=0, tag=98)
            assert [microbatch.index for microbatch in receiver.receive()] == list(range(sent))


def test_two_channels_between_the_same_ranks(world: World) -> None:
    """Each has its own order, depth and streams; the receiver may read them in any order."""
    links = [Link(0, 1, 1), Link(1, 0, 2), Link(0, 1, 3)]
    receivers, senders = world.connect(links)
    for channel, sender in senders.items():
        for index in range(links[channel].depth):
            sender.send(MicroBatch(index, (torch.full((5,), float(channel)), channel)))
    streams = {channel: receiver.receive() for channel, receiver in receivers.items()}
    for channel in sorted(streams, reverse=True):
        stream = streams[channel]
        for index in range(links[channel].depth):
            found = next(stream)
            assert (found.index, found.values[1]) == (index, channel)
            assert_same(found.values[0], torch.full((5,), float(channel)))
    for sender in senders.values():
        sender.end()
    for stream in streams.values():
        assert list(stream) == []
    for sender in senders.values():
        sender.close()
    for receiver in receivers.values():
        receiver.close()


def test_streams_follow_one_another(world: World) -> None:
    with ends(world) as (receiver, sender):
        for length in (3, 0, 1, 0, 0, 20):
            if sender is not None:
                for index in range(length):
                    sender.send(MicroBatch(index, (torch.full((4,), float(index)),)))
                sender.end()
            if receiver is not None:
                found = [microbatch.values[0] for microbatch in receiver.receive()]
                expected = [torch.full((4,), float(index)) for index in range(length)]
                assert len(found) == length
                for one, other in zip(found, expected, strict=True):
                    assert_same(one, other)


def test_received_tensors_are_not_overwritten(world: World) -> None:
    sent = [torch.full((1000,), float(index)) for index in range(12)]
    found = transfer(world, [(each,) for each in sent], depth=2)
    for microbatch, expected in zip(found, sent if found else [], strict=True):
        assert_same(microbatch.values[0], expected)
