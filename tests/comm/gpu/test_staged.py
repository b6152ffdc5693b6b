"""The sending end from a GPU to a host: no value is sent before its copy is done.

A stand-in for the MPI sender queries events as the progress engine does. tests/ranks sends by MPI.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipepar.comm.channels.entries import microbatch_of
from pipepar.comm.channels.memory import Layout, flat, tensor_from_buffer
from pipepar.comm.channels.spec import describe
from pipepar.comm.gpu import staged
from pipepar.microbatch import MicroBatch, Value
from tests.helpers.gpu.exchange import POLICIES
from tests.helpers.gpu.stages import Item, Results, computed, disturb, feed, items
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import Scheduler


@dataclass
class _Posted:
    index: int
    layout: Layout
    memory: Sequence[torch.Tensor]
    gate: int


class GatedSender:
    """Takes the place of `MpiSender`: sends posted micro-batches in order, when gates are open."""

    def __init__(self, edge: Any, gpu: SimulatedGpu, query: int) -> None:
        self._depth: int = edge.depth
        self._gpu = gpu
        self._query = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(query)
        self._random = Random(edge.depth)
        self._under_way: deque[_Posted] = deque()
        self.results = Results()

    def layout(self, values: tuple[Value, ...]) -> Layout:
        return Layout.of(tuple(map(describe, values)))

    def admit(self) -> None:
        self._progress(self._random.randrange(3))
        while len(self._under_way) >= self._depth:
            self._progress(1)

    def post(
        self,
        microbatch: MicroBatch,
        layout: Layout,
        memory: Sequence[torch.Tensor],
        gate: int = 0,
    ) -> None:
        assert len(self._under_way) < self._depth, "posted without admit"
        self._under_way.append(_Posted(microbatch.index, layout, memory, gate))
        self._progress(1)

    def end(self) -> None:
        self.admit()

    def close(self) -> None:
        while self._under_way:
            self._progress(1)

    def _progress(self, rounds: int) -> None:
        for _ in range(rounds):
            if not self._under_way:
                return
            gate = self._under_way[0].gate
            if gate and self._query(gate):
                continue
            self._send(self._under_way.popleft())

    def _send(self, posted: _Posted) -> None:
        values: list[Value] = list(posted.layout.spec)  # type: ignore[arg-type]
        for tensor_layout, tensor in zip(posted.layout.tensors, posted.memory, strict=True):
            raw = flat(tensor)[: tensor_layout.nbytes]
            assert not self._gpu.holds(raw)
            if self._gpu.is_pinned(raw):
                self._gpu.touch(reads=[raw])
            values[tensor_layout.position] = tensor_from_buffer(tensor_layout, raw.clone())
        arrived = microbatch_of(posted.index, 0, tuple(values))
        self.results.read(self._gpu, arrived.index, arrived.values)


def sent_by(
    monkeypatch: pytest.MonkeyPatch, gpu: SimulatedGpu, depth: int
) -> tuple[staged.StagedSender, GatedSender]:
    monkeypatch.setattr(staged, "MpiSender", lambda edge, _, query: GatedSender(edge, gpu, query))
    edge: Any = SimpleNamespace(depth=depth)
    engine: Any = None
    sender = staged.StagedSender(edge, engine, gpu)
    mpi_sender: Any = sender._sender
    return sender, mpi_sender


def scheduler_of(seed: int) -> Scheduler:
    eagerness = Random(seed).choice([0.0, 0.3, 0.6, 0.9])
    return Scheduler(seed, POLICIES[seed % 5], eagerness)


def send(
    seed: int, sent: Sequence[Sequence[Item]], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimulatedGpu(scheduler_of(seed), "a")
    sender, mpi_sender = sent_by(monkeypatch, gpu, depth)
    for each in feed(gpu, sent):
        sender.send(each)
        disturb(gpu, Random(each.index))
        del each  # free its memory as early as the channel allows
    sender.end()
    sender.close()
    gpu.scheduler.drain()
    gpu.scheduler.assert_ordered()
    mpi_sender.results.assert_equal(sent)


@pytest.mark.parametrize("seed", seeds(120))
def test_values_and_strides_are_sent_unchanged(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    torch.manual_seed(seed)
    sent = [items(random, random.randrange(4)) for _ in range(8)]
    send(seed, sent, random.choice([1, 2, 3]), monkeypatch)


@pytest.mark.parametrize("seed", seeds(15))
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_sizes_that_grow_and_shrink(depth: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (10, 1000, 2, 0, 1000, 1001, 25_000, 3, 25_000)
    sent = [[Item(torch.full((n,), k + 1), lambda x: x, True)] for k, n in enumerate(sizes)]
    send(seed, sent, depth, monkeypatch)


def test_sending_queries_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the engine queries events."""
    gpu = SimulatedGpu(Scheduler(eagerness=0), "a")
    sender, mpi_sender = sent_by(monkeypatch, gpu, 5)
    monkeypatch.setattr(mpi_sender, "_progress", lambda rounds: None)
    for index in range(4):
        sender.send(MicroBatch(index, (computed(gpu, torch.full((9,), index)),)))
    assert not gpu.scheduler.polled
    assert not gpu.scheduler.executed


def test_the_next_micro_batch_is_computed_during_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(Scheduler(eagerness=0), "a")
    sender, _ = sent_by(monkeypatch, gpu, 9)
    side = gpu.scheduler.streams[-1]
    monkeypatch.setattr(GatedSender, "_progress", lambda *_: None)
    for index in range(6):
        sender.send(MicroBatch(index, (computed(gpu, torch.full((9,), index)),)))
    gpu.scheduler.run(held=[side])
    # Two slots are full, and a third micro-batch is computed without a slot.
    assert sum(each.label == "compute" for each in gpu.compute.waiting) == 3
    gpu.scheduler.drain()
    gpu.scheduler.assert_ordered()


def test_a_finished_copy_is_sent_while_later_ones_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(eagerness=0)
    gpu, other = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    sender, mpi_sender = sent_by(monkeypatch, gpu, 3)
    gate, progress = gpu.empty(8), mpi_sender._progress
    monkeypatch.setattr(mpi_sender, "_progress", lambda rounds: None)
    for index in range(3):
        sender.send(MicroBatch(index, (computed(gpu, torch.full((9,), index)),)))
        if index == 0:  # a receive without a send blocks later work
            left, _ = link(gpu, other)
            left.receive(gate.data_ptr(), 8, gpu.compute.cuda_stream)
    scheduler.run()
    progress(20)
    assert mpi_sender.results.indices == [0]
