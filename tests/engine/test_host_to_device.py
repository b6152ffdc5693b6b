"""Copies to a GPU and back, on simulated GPUs that delay their work as far as events allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
import torch

from pipepar.engine import device_to_host as device_to_host
from pipepar.engine.device_to_host import copied_to_host
from pipepar.engine.host_to_device import HostToDevice
from pipepar.engine.loop import Program, outputs_of, run
from pipepar.microbatch import MicroBatch, TensorSpec, Value
from pipepar.trace import Tracer
from tests.helpers.gpu.exchange import POLICIES
from tests.helpers.gpu.stages import Item, assert_same, computed, disturb, items, passed_on
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import Scheduler

NAMES = tuple("abcd")


@pytest.fixture(autouse=True)
def pinned_by(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedGpu]:
    """Return a list for simulated GPUs; they decide which memory is pinned."""
    gpus: list[SimulatedGpu] = []
    monkeypatch.setattr(
        torch.Tensor, "is_pinned", lambda tensor: any(gpu.is_pinned(tensor) for gpu in gpus)
    )
    return gpus


def pinned(gpu: SimulatedGpu, item: Item) -> Value:
    """Return the value in pinned memory, like one received over MPI."""
    if not isinstance(item.base, torch.Tensor):
        return item.base
    memory = gpu.pinned(item.base.nbytes).view(item.base.dtype).view(item.base.shape)
    gpu.touch(writes=[memory])
    return item.view(memory.copy_(item.base))


def fed(gpu: SimulatedGpu, sent: Sequence[Sequence[Item]]) -> Iterator[MicroBatch]:
    """Yield micro-batches of values on the GPU, on the host, and in pinned memory."""
    random = Random(len(sent))
    for index, each in enumerate(sent):
        disturb(gpu, random)
        values = tuple(
            item.on(gpu) if item.resident or random.random() < 0.5 else pinned(gpu, item)
            for item in each
        )
        yield MicroBatch(index, values, torch.arange(index, index + 3))


def stage(gpu: SimulatedGpu, forwards: int) -> Callable[[tuple[Value, ...]], Sequence[Value]]:
    """Return a stage that forwards the values in the bit mask `forwards` and copies the others."""
    random = Random(forwards)

    def compute(values: tuple[Value, ...]) -> Sequence[Value]:
        assert all(gpu.holds(value) for value in values if isinstance(value, torch.Tensor))
        disturb(gpu, random)
        return [v if forwards >> k & 1 else passed_on(gpu, v) for k, v in enumerate(values)]

    return compute


def results_of(
    gpu: SimulatedGpu, arriving: Iterator[MicroBatch], ahead: int, forwards: int = 0
) -> Iterator[MicroBatch]:
    upload, compute = HostToDevice(gpu), stage(gpu, forwards)
    count = len(NAMES)
    program = Program(tuple(range(count)), lambda values, step: compute(upload(values)))
    results = run([program], arriving, (), Tracer(0))
    results = outputs_of(results, range(count, 2 * count))
    return copied_to_host(results, gpu, ahead, Tracer(0))


def on_host(gpu: SimulatedGpu, values: tuple[Value, ...]) -> list[tuple[TensorSpec | None, Value]]:
    """Return the layouts and values that the host reads; events alone must have ordered them."""
    found: list[tuple[TensorSpec | None, Value]] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            assert not gpu.holds(value)
            if gpu.is_pinned(value):
                gpu.touch(reads=[value])
            found.append((TensorSpec.of(value), value.clone()))
        else:
            found.append((None, value))
    return found


def round_trip(
    seed: int, sent: Sequence[Sequence[Item]], forwards: int, pinned_by: list[SimulatedGpu]
) -> None:
    random = Random(seed)
    eagerness = random.choice([0.0, 0.3, 0.6, 0.9])
    scheduler = Scheduler(seed, POLICIES[seed % 6], eagerness)
    gpu = SimulatedGpu(scheduler, "a")
    pinned_by[:] = [gpu]
    results: list[tuple[Any, tuple[Value, ...]]] = []
    for each in results_of(gpu, fed(gpu, sent), random.choice([1, 2, 3]), forwards):
        assert each.index == len(results)
        assert each.samples is not None
        assert torch.equal(each.samples, torch.arange(each.index, each.index + 3))
        results.append((on_host(gpu, each.values), each.values))
    scheduler.drain()
    scheduler.assert_ordered()
    assert len(results) == len(sent)
    for whole, (found, values) in zip(sent, results, strict=True):
        for item, (spec, value), kept_value in zip(whole, found, values, strict=True):
            assert_same(item.expected, spec, value)
            # A result belongs to the caller, so its memory is not reused.
            assert_same(item.expected, spec, kept_value)


@pytest.mark.parametrize("seed", seeds(150))
def test_values_and_layouts_survive_a_round_trip(seed: int, pinned_by: list[SimulatedGpu]) -> None:
    random = Random(seed)
    torch.manual_seed(seed)
    sent = [items(random, len(NAMES), resident=0.3) for _ in range(8)]
    round_trip(seed, sent, random.randrange(1 << len(NAMES)), pinned_by)


@pytest.mark.parametrize("seed", seeds(30))
def test_results_may_be_the_inputs_themselves(seed: int, pinned_by: list[SimulatedGpu]) -> None:
    """The slot of an input is reused while that input is still copied back to the host."""
    sent = [[tensor(k * 4 + n + 1, 64) for n in range(len(NAMES))] for k in range(10)]
    round_trip(seed, sent, 0b1111, pinned_by)


def tensor(value: int, size: int) -> Item:
    return Item(torch.full((size, 2), value), lambda x: x, False)


@pytest.mark.parametrize("seed", seeds(30))
def test_micro_batches_without_tensors_to_copy(seed: int, pinned_by: list[SimulatedGpu]) -> None:
    nothing = Item(None, lambda x: x, False)
    sent = [
        [tensor(k + 1, 64) if k % 3 else nothing, tensor(9, 0), nothing, nothing] for k in range(9)
    ]
    round_trip(seed, sent, 0b1111, pinned_by)


@pytest.mark.parametrize("seed", seeds(30))
def test_sizes_may_grow_and_shrink(seed: int, pinned_by: list[SimulatedGpu]) -> None:
    sizes = [10, 500, 10, 500, 0, 2000, 1, 2000, 2001, 30]
    sent = [[tensor(k + n, size) for n in range(4)] for k, size in enumerate(sizes)]
    round_trip(seed, sent, 0b0101, pinned_by)


def test_uploading_does_not_block_the_host() -> None:
    scheduler = Scheduler(eagerness=0)
    gpu = SimulatedGpu(scheduler, "a")
    upload = HostToDevice(gpu)
    for k in range(5):
        gpu.launch(gpu.compute, lambda x: None, reads=upload([torch.full((9,), k)]))  # type: ignore[arg-type]
    assert not scheduler.polled
    assert not scheduler.executed


def test_the_next_upload_overlaps_the_computation() -> None:
    scheduler = Scheduler(eagerness=0)
    gpu = SimulatedGpu(scheduler, "a")
    upload = HostToDevice(gpu)
    side = scheduler.streams[-1]
    for k in range(3):
        upload([torch.full((9,), k)])
        scheduler.drain()
    gpu.launch(gpu.compute, lambda: None, label="long")
    upload([torch.full((9,), 3)])
    scheduler.run(held=[gpu.compute])
    assert gpu.compute.waiting[0].label == "long"
    assert "copy" not in [operation.label for operation in gpu.compute.waiting]
    assert not side.waiting
    # The upload after that must wait, since the stage still reads its slot.
    upload([torch.full((9,), 4)])
    scheduler.run(held=[gpu.compute])
    assert side.waiting
    scheduler.drain()
    scheduler.assert_ordered()


def test_tensors_on_the_gpu_or_in_pinned_memory_need_no_extra_copy(
    pinned_by: list[SimulatedGpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(eagerness=0)
    gpu = SimulatedGpu(scheduler, "a")
    pinned_by[:] = [gpu]
    upload = HostToDevice(gpu)
    host, there = pinned(gpu, tensor(3, 20)), gpu.empty(80).view(torch.float32)
    taken: list[int] = []
    monkeypatch.setattr(gpu, "pinned", taken.append)
    side, compute = scheduler.streams[-1], gpu.compute
    assert upload([there, None, 3])[0] is there
    assert not side.waiting
    assert not compute.waiting
    upload([host, there])
    assert [operation.label for operation in side.waiting].count("copy") == 1
    assert not taken


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_the_host_waits_only_when_ahead_results_are_pending(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(eagerness=0)
    gpu, other = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    left, right = link(gpu, other)
    made, waits, count = 0, list[int](), 12

    def source() -> Iterator[MicroBatch]:
        nonlocal made
        for index in range(count):
            value, gate = computed(gpu, torch.full((5,), index)), gpu.empty(8)
            left.receive(gate.data_ptr(), 8, gpu.compute.cuda_stream)
            made += 1
            yield MicroBatch(index, (value, value))

    def wait(event: Any) -> None:
        waits.append(made)
        begin = other.empty(8)
        right.send(begin.data_ptr(), 8, other.compute.cuda_stream)  # lets the GPU compute one more
        while not event.query():
            pass

    monkeypatch.setattr(device_to_host, "wait_for_event", wait)
    for each in copied_to_host(outputs_of(source(), [0]), gpu, ahead, Tracer(0)):
        (found,) = each.values  # the other value is not an output
        assert torch.equal(found, torch.full((5,), each.index))  # type: ignore[arg-type]
    # No copy completes without a wait here, so each result is waited for.
    assert waits == [min(index + ahead + 1, count) for index in range(count)]
    scheduler.assert_ordered()


def test_one_slot_is_allocated_per_pending_result() -> None:
    gpu = SimulatedGpu(Scheduler(eagerness=0), "a")
    value, taken, give = computed(gpu, torch.zeros(100)), list[int](), gpu.empty

    def empty(nbytes: int) -> torch.Tensor:
        taken.append(nbytes)
        return give(nbytes)

    gpu.empty = empty  # type: ignore[method-assign]
    made = (MicroBatch(index, (value,)) for index in range(12))
    for _ in copied_to_host(made, gpu, 3, Tracer(0)):
        pass
    assert [nbytes for nbytes in taken if nbytes] == [400] * 4


def test_lazily_conjugated_results_are_resolved() -> None:
    scheduler = Scheduler(eagerness=0)
    gpu = SimulatedGpu(scheduler, "a")
    value = torch.complex(torch.arange(6.0), torch.ones(6)).view(2, 3)

    def source() -> Iterator[MicroBatch]:
        lazy = computed(gpu, value).conj()
        yield MicroBatch(0, (lazy, lazy.imag))

    (found,) = copied_to_host(source(), gpu, 1, Tracer(0))
    assert torch.equal(found.values[0], value.conj())  # type: ignore[arg-type]
    assert torch.equal(found.values[1], -value.imag)  # type: ignore[arg-type]
    scheduler.assert_ordered()


def test_results_are_yielded_as_soon_as_they_are_copied() -> None:
    scheduler = Scheduler()
    gpu = SimulatedGpu(scheduler, "a")
    made = 0

    def source() -> Iterator[MicroBatch]:
        nonlocal made
        for index in range(5):
            made += 1
            yield MicroBatch(index, (computed(gpu, torch.full((5,), index)),))
            scheduler.drain()

    found = [(each.index, made) for each in copied_to_host(source(), gpu, 4, Tracer(0))]
    assert [index for index, _ in found] == list(range(5))
    assert all(behind <= index + 2 for index, behind in found)
