"""Gated sends: the progress engine starts them when their gates open."""

import ctypes
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.channels.entries import entries_of
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint
from pipepar.comm.channels.mpi_receiver import MpiReceiver
from pipepar.comm.channels.mpi_sender import MpiSender
from pipepar.comm.world import World
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch
from tests.helpers.gpu.gates import QUERY, Gate
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi(min_size=2), on_ranks(2)]


@contextmanager
def endpoints(world: World, depth: int = 3) -> Iterator[tuple[MpiEndpoint, MpiEndpoint]]:
    """Yield this rank's endpoints of a channel from rank 0 to rank 1, and of one back."""
    comm = MPI.COMM_WORLD.Dup()
    peer = 1 - world.rank
    yield MpiEndpoint(comm, peer, 0, depth), MpiEndpoint(comm, peer, MpiEndpoint.tags(depth), depth)
    comm.Barrier()
    comm.Free()


Ends = tuple[MpiReceiver | None, MpiSender | None]


@contextmanager
def ends(world: World, depth: int = 3) -> Iterator[Ends]:
    """Connect a gated channel from rank 0 to rank 1; yield this rank's ends, None for others."""
    with endpoints(world, depth) as (endpoint, _):
        engine = world._start_engine()
        sender = MpiSender(endpoint, engine, QUERY) if world.rank == 0 else None
        receiver = MpiReceiver(endpoint, engine) if world.rank == 1 else None
        yield receiver, sender
        for end in (sender, receiver):
            if end is not None:
                end.close()


def post(sender: MpiSender, index: int, tensor: torch.Tensor, gate: int = 0) -> None:
    microbatch = MicroBatch(index, (tensor,))
    layout = sender.layout(entries_of(microbatch))
    sender.admit()
    sender.post(microbatch, layout, [tensor], gate)


def stays_empty(receiver: MpiReceiver) -> bool:
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        if receiver.ready():
            return False
        time.sleep(0.001)
    return True


def test_nothing_is_sent_before_its_gate_opens(world: World) -> None:
    with ends(world) as (receiver, sender):
        memory, gate = torch.zeros(1000), Gate()
        if sender is not None:
            post(sender, 0, memory, gate.handle)
            sender.end()
        MPI.COMM_WORLD.Barrier()
        if receiver is not None:
            assert stays_empty(receiver)
        MPI.COMM_WORLD.Barrier()
        memory.fill_(7)
        gate.open()
        if receiver is not None:
            (found,) = receiver.receive()
            assert torch.equal(found.values[0], torch.full((1000,), 7.0))  # type: ignore[arg-type]


def test_order_is_kept_if_gates_open_out_of_order(world: World) -> None:
    with ends(world, depth=4) as (receiver, sender):
        gates = [Gate(), Gate(), None]  # None: no gate
        if sender is not None:
            for index, gate in enumerate(gates):
                post(sender, index, torch.tensor(index), gate.handle if gate else 0)
            sender.end()
            gates[1].open()  # type: ignore[union-attr]
        MPI.COMM_WORLD.Barrier()
        if receiver is not None:
            assert stays_empty(receiver)
        MPI.COMM_WORLD.Barrier()
        gates[0].open()  # type: ignore[union-attr]
        if receiver is not None:
            assert [found.values[0] for found in receiver.receive()] == [0, 1, 2]


def test_a_send_starts_before_the_previous_one_is_complete(world: World) -> None:
    comm = MPI.COMM_WORLD
    gates, lane = [Gate() for _ in range(4)], world._start_engine().lane(QUERY)
    data = [bytearray([tag]) for tag in range(4)]
    if world.rank == 0:
        requests = [comm.Ssend_init([each, MPI.BYTE], 1, tag) for tag, each in enumerate(data)]
        for request, gate in zip(requests, gates, strict=True):
            lane.push([MPI._addressof(request)], gate.handle)
        for open_now in (0, 1, 3):
            gates[open_now].open()
    if world.rank == 1:
        comm.Recv([bytearray(1), MPI.BYTE], 0, 1)  # message 0 is not received yet
        time.sleep(0.05)
        assert not comm.Iprobe(0, 2)
        assert not comm.Iprobe(0, 3)  # its gate is open, but that of message 2 is closed
        comm.Recv([bytearray(1), MPI.BYTE], 0, 0)
    comm.Barrier()
    gates[2].open()
    if world.rank == 1:
        for tag in (3, 2):
            comm.Recv([bytearray(1), MPI.BYTE], 0, tag)
    if world.rank == 0:
        assert lane.wait(4, 10.0)
        assert (lane.completed, lane.error, lane.gate_error) == (4, 0, 0)
        for request in requests:
            request.Free()


def test_the_engine_starts_a_send_while_the_gil_is_held(world: World) -> None:
    with ends(world) as (receiver, sender):
        times = [0.0]
        if sender is not None:
            gate = Gate()
            post(sender, 0, torch.zeros(100), gate.handle)
            gate.open()
            ctypes.PyDLL(None).usleep(700_000)  # PyDLL holds the GIL
            times = [time.monotonic()]
            sender.end()
        if receiver is not None:
            next(receiver.receive())
            times = [time.monotonic()]
        sent, arrived = MPI.COMM_WORLD.allgather(times)[:2]
        assert arrived[0] < sent[0] - 0.3
        if receiver is not None:
            receiver.abort()


def test_a_send_starts_while_the_rank_waits_for_another_channel(world: World) -> None:
    with endpoints(world) as (there, back):
        engine = world._start_engine()
        if world.rank == 0:
            gate, sender, receiver = (
                Gate(),
                MpiSender(there, engine, QUERY),
                MpiReceiver(back, engine),
            )
            post(sender, 0, torch.zeros(100), gate.handle)
            sender.end()
            timer = threading.Timer(0.1, gate.open)
            timer.start()
            assert len(list(receiver.receive())) == 1
            timer.join()
        if world.rank == 1:
            receiver, sender = MpiReceiver(there, engine), MpiSender(back, engine, QUERY)
            for microbatch in receiver.receive():
                sender.send(microbatch)
            sender.end()
        if world.rank < 2:
            sender.close()
            receiver.close()


def test_the_error_of_a_gate_is_reported(world: World) -> None:
    with endpoints(world) as (endpoint, _):
        if world.rank == 0:
            gate, sender = Gate(), MpiSender(endpoint, world._start_engine(), QUERY)
            post(sender, 0, torch.zeros(100), gate.handle)
            gate.fail()
            with pytest.raises(WireError, match=r"to rank 1 failed: .* CUDA error 700"):
                sender.close()
            sender.abort()


def test_a_lane_without_a_query_refuses_gates(world: World) -> None:
    with pytest.raises(ValueError, match="no gates"):
        world._start_engine().lane().push([], Gate().handle)


def test_enter_calls_a_function_in_the_thread_of_the_engine(world: World) -> None:
    engine, gate = world._start_engine(), Gate()
    assert engine.enter(0, 0) == 0
    for _ in range(3):  # the thread may be asleep or about to sleep
        assert engine.enter(QUERY, gate.handle) == 600


@pytest.mark.parametrize("call", [MpiSender.end, MpiSender.close], ids=["send", "close"])
def test_abort_wakes_a_thread_that_waits_for_a_gate(
    world: World, call: Callable[[MpiSender], None]
) -> None:
    with endpoints(world, depth=1) as (endpoint, _):
        if world.rank == 0:
            sender = MpiSender(endpoint, world._start_engine(), QUERY)
            post(sender, 0, torch.zeros(100), Gate().handle)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(call, sender)
                time.sleep(0.1)
                assert not waiting.done()
                sender.abort()
                with pytest.raises(WireError, match="closed"):
                    waiting.result(10)
            sender.close()
            with pytest.raises(WireError, match="closed"):
                sender.admit()


@pytest.mark.parametrize("half", [10_000, pytest.param(50_000, marks=pytest.mark.full)])
def test_many_gated_sends_do_not_grow_memory(world: World, half: int) -> None:
    """A persistent request that is not freed takes hundreds of bytes."""
    tensor, gate, peaks = torch.arange(4), Gate(), []
    gate.open()
    with ends(world) as (receiver, sender):
        for _ in range(2):
            if sender is not None:
                for index in range(half):
                    post(sender, index, tensor, gate.handle)
                sender.end()
            if receiver is not None:
                assert sum(1 for _ in receiver.receive()) == half
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 80 * half // 1024  # KiB
