"""Aborting an MPI channel."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi(min_size=2), on_ranks(2)]


def test_abort_wakes_a_thread_that_receives(world: World) -> None:
    receivers, _ = world.connect([Link(0, 1, 1)])
    for receiver in receivers.values():
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(next, receiver.receive())
            time.sleep(0.1)
            receiver.abort()
            with pytest.raises(WireError, match="receiving from rank 0 was aborted"):
                waiting.result(10)


def test_abort_does_not_wait(world: World) -> None:
    receivers, senders = world.connect([Link(0, 1, 2)])
    if world.rank == 0:
        senders[0].send(MicroBatch(0, (torch.zeros(10_000_000),)))
        senders[0].abort()  # before rank 1 has received it
        with pytest.raises(WireError, match="closed"):
            senders[0].send(MicroBatch(1, ()))
    for receiver in receivers.values():
        next(receiver.receive())
        receiver.abort()
        with pytest.raises(WireError, match="closed"):
            next(receiver.receive())
