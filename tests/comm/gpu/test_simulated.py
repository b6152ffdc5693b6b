"""The simulated GPU: it accepts accesses that CUDA orders, and reports all others."""

from __future__ import annotations

import ctypes

import pytest
import torch

from pipepar.comm.gpu.cuda import wait_for_event
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import Deadlock, Scheduler, newest


def fill(gpu: SimulatedGpu, stream: object, memory: torch.Tensor, value: int) -> None:
    gpu.launch(stream, lambda x: x.fill_(value), writes=[memory], label=f"fill {value}")


def late(seed: int = 0) -> tuple[Scheduler, SimulatedGpu, SimulatedGpu]:
    """Return a scheduler that executes nothing by itself, and two GPUs."""
    scheduler = Scheduler(seed, newest, eagerness=0, patience=0.1)
    return scheduler, SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")


@pytest.mark.parametrize("waits", [False, True])
def test_only_events_order_streams(waits: bool) -> None:
    scheduler, gpu, _ = late()
    memory, side, event = gpu.empty(8), gpu.stream(), gpu.event()
    fill(gpu, gpu.compute, memory, 1)
    event.record(gpu.compute)
    if waits:
        side.wait_event(event)
    fill(gpu, side, memory[4:], 2)
    scheduler.drain()
    assert memory.tolist() == ([1] * 4 + [2] * 4 if waits else [1] * 8)
    if waits:
        scheduler.assert_ordered()
    else:
        with pytest.raises(AssertionError, match=r"fill 1 .* on a's compute\) writes \[0, 8\)"):
            scheduler.assert_ordered()


def test_different_bytes_of_a_block_and_two_readers_are_no_race() -> None:
    scheduler, gpu, _ = late()
    memory, side = gpu.empty(8), gpu.stream()
    for stream, part in ((gpu.compute, memory[:4]), (side, memory[4:])):
        fill(gpu, stream, part, 1)
        gpu.launch(stream, lambda x: None, reads=[part])
    scheduler.drain()
    scheduler.assert_ordered()


def test_a_wait_refers_to_the_last_record_before_it() -> None:
    scheduler, gpu, _ = late()
    memory, side, event = gpu.empty(8), gpu.stream(), gpu.event()
    assert event.query()
    side.wait_event(event)  # never recorded: no wait
    event.record(side)
    gpu.compute.wait_event(event)
    fill(gpu, gpu.compute, memory, 1)
    fill(gpu, side, memory, 2)
    event.record(side)  # too late for compute
    scheduler.drain()
    assert len(scheduler.faults) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_freed_memory_is_reused_at_once(waits: bool) -> None:
    scheduler, gpu, _ = late()
    side, event = gpu.stream(), gpu.event()
    memory = gpu.empty(100)
    address, view = memory.data_ptr(), memory[50:]
    del memory
    assert gpu.empty(8).data_ptr() != address  # a view keeps it allocated
    fill(gpu, side, view, 1)
    event.record(side)
    if waits:
        gpu.compute.wait_event(event)
    del view
    again = gpu.empty(100)
    assert again.data_ptr() == address
    fill(gpu, gpu.compute, again, 2)
    scheduler.drain()
    assert bool(scheduler.faults) is not waits


def test_completed_events_precede_later_work_of_the_host() -> None:
    scheduler, gpu, _ = late()
    memory, side, event = gpu.empty(8), gpu.stream(), gpu.event()
    fill(gpu, gpu.compute, memory, 1)
    event.record(gpu.compute)
    wait_for_event(event)
    fill(gpu, side, memory, 2)
    scheduler.drain()
    scheduler.assert_ordered()
    fill(gpu, gpu.compute, memory, 3)  # executed later, but the host has polled no event
    scheduler.drain()
    assert len(scheduler.faults) == 1


def test_a_host_must_not_access_memory_during_a_copy() -> None:
    scheduler, gpu, _ = late()
    memory, pinned, event = gpu.empty(8), gpu.pinned(8), gpu.event()
    gpu.touch(writes=[pinned])
    gpu.copy(memory, pinned, gpu.compute)
    event.record(gpu.compute)
    wait_for_event(event)
    gpu.touch(writes=[pinned])
    scheduler.assert_ordered()
    gpu.copy(pinned, memory, gpu.compute)
    gpu.touch(reads=[pinned])
    scheduler.drain()
    assert len(scheduler.faults) == 1


def test_a_deadlock_is_an_error() -> None:
    scheduler, a, b = late()
    memory, (left, _) = a.empty(8), link(a, b)
    event = a.event(timed=True)
    left.send(memory.data_ptr(), 8, a.compute.cuda_stream)
    event.record(a.compute)
    with pytest.raises(Deadlock, match=r"send 0 .* 1 behind it"):
        scheduler.drain()
    with pytest.raises(Deadlock, match=r"a host polls .* without progress"):
        wait_for_event(event)
    left.abort()
    scheduler.drain()
    assert event.query()


@pytest.mark.parametrize(("eager", "races"), [(0, 0), (8, 1)])
def test_a_transfer_orders_both_sides_unless_it_is_eager(eager: int, races: int) -> None:
    scheduler, a, b = late()
    here, there, other, shared = a.empty(8), b.empty(8), b.empty(8), b.empty(8)
    left, right = link(a, b, eager)
    back, forth = link(a, b, 0)
    side = b.stream()
    fill(b, b.compute, shared, 1)
    right.receive(there.data_ptr(), 8, b.compute.cuda_stream)
    left.send(here.data_ptr(), 8, a.compute.cuda_stream)
    # This is after the first use only through the other GPU.
    back.send(here.data_ptr(), 8, a.compute.cuda_stream)
    forth.receive(other.data_ptr(), 8, side.cuda_stream)
    fill(b, side, shared, 2)
    scheduler.drain()
    assert len(scheduler.faults) == races


def test_different_sizes_of_a_transfer_are_an_error() -> None:
    scheduler, a, b = late()
    left, right = link(a, b)
    here, there = a.empty(8), b.empty(8)
    left.send(here.data_ptr(), 8, a.compute.cuda_stream)
    right.receive(there.data_ptr(), 7, b.compute.cuda_stream)
    assert not left.problem()
    with pytest.raises(Deadlock):
        scheduler.drain()
    assert "8 bytes" in left.problem()
    assert "7 bytes" in right.problem()
    with pytest.raises(AssertionError, match="7 bytes"):
        scheduler.assert_ordered()
    with pytest.raises(RuntimeError, match="under way"):
        left.close()


def test_memory_of_another_gpu_is_refused() -> None:
    _, a, b = late()
    left, _ = link(a, b)
    memory, own = b.empty(8), a.empty(8)
    for foreign in (memory, torch.empty(8, dtype=torch.uint8)):
        with pytest.raises(LookupError):
            a.copy(own, foreign, a.compute)
        with pytest.raises(LookupError):
            left.send(foreign.data_ptr(), 8, a.compute.cuda_stream)
    with pytest.raises(KeyError):
        left.send(own.data_ptr(), 8, b.compute.cuda_stream)
    address = own.data_ptr()
    del own
    with pytest.raises(LookupError):
        left.send(address, 8, a.compute.cuda_stream)


def test_simulated_time_increases() -> None:
    scheduler, gpu, _ = late()
    first, last = gpu.event(timed=True), gpu.event(timed=True)
    first.record(gpu.compute)
    fill(gpu, gpu.compute, gpu.empty(8), 1)
    last.record(gpu.compute)
    scheduler.drain()
    assert first.elapsed_time(last) > 0


def test_operations_of_torch_are_refused_or_launched() -> None:
    scheduler, gpu, other = late()
    memory = gpu.empty(64).view(torch.complex64).view(2, 4)
    gpu.launch(gpu.compute, lambda x: x.fill_(1 + 2j), writes=[memory])
    assert gpu.holds(memory[:, ::2])
    assert gpu.holds(memory[:0])
    assert not other.holds(memory)
    assert not gpu.holds(torch.ones(2))
    with pytest.raises(TypeError, match="use launch"):
        memory.fill_(0)
    with pytest.raises(TypeError, match="use launch"):
        torch.ones(2, 4, dtype=torch.complex64).copy_(memory)
    with pytest.raises(TypeError, match="use launch"):
        memory.t().contiguous()
    strided = memory.new_empty_strided((2, 3), (8, 2), dtype=torch.int16)
    assert gpu.holds(strided)
    assert strided.stride() == (8, 2)
    plain = memory[:, 1:].conj().resolve_conj()
    negated = memory.conj().imag.resolve_neg()
    assert gpu.holds(plain)
    scheduler.drain()
    assert plain.tolist() == [[1 - 2j] * 3] * 2
    assert negated.tolist() == [[-2.0] * 4] * 2


def test_event_query_returns_the_state_of_an_event() -> None:
    scheduler, gpu, _ = late()
    event = gpu.event()
    query = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(gpu.event_query)
    event.record(gpu.compute)
    while query(event.cuda_event):
        pass
    assert scheduler.polled
