"""The sending end from a GPU to a host: what is sent has come, however late the GPU is.

That MPI sends it is for tests of ranks; here a stand-in asks as the progress engine would.
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
from pipepar.comm.channels.memory import Layout, flat, laid_out
from pipepar.comm.channels.spec import describe
from pipepar.comm.gpu import staged
from pipepar.microbatch import MicroBatch, Value
from tests.helpers.gpu.exchange import POLICIES
from tests.helpers.gpu.stages import Item, Seen, computed, disturb, feed, items
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


class Asking:
    """In the place of `MpiSender`: sends what was posted when its gate is open, oldest first."""

    def __init__(self, edge: Any, gpu: SimulatedGpu, query: int) -> None:
        self._depth: int = edge.depth
        self._gpu = gpu
        self._has_not_come = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(query)
        self._random = Random(edge.depth)
        self._under_way: deque[_Posted] = deque()
        self.seen = Seen()

    def layout(self, values: tuple[Value, ...]) -> Layout:
        return Layout.of(tuple(map(describe, values)))

    def admit(self) -> None:
        self._go_on(self._random.randrange(3))
        while len(self._under_way) >= self._depth:
            self._go_on(1)

    def post(
        self,
        microbatch: MicroBatch,
        layout: Layout,
        memory: Sequence[torch.Tensor],
        gate: int = 0,
    ) -> None:
        assert len(self._under_way) < self._depth, "it was not admitted"
        self._under_way.append(_Posted(microbatch.index, layout, memory, gate))
        self._go_on(1)

    def end(self) -> None:
        self.admit()

    def close(self) -> None:
        while self._under_way:
            self._go_on(1)

    def _go_on(self, looks: int) -> None:
        for _ in range(looks):
            if not self._under_way:
                return
            gate = self._under_way[0].gate
            if gate and self._has_not_come(gate):
                continue
            self._send(self._under_way.popleft())

    def _send(self, posted: _Posted) -> None:
        values: list[Value] = list(posted.layout.spec)  # type: ignore[arg-type]
        for tensor_layout, tensor in zip(posted.layout.tensors, posted.memory, strict=True):
            raw = flat(tensor)[: tensor_layout.nbytes]
            assert not self._gpu.holds(raw)
            if self._gpu.is_pinned(raw):
                self._gpu.touch(reads=[raw])
            values[tensor_layout.position] = laid_out(tensor_layout, raw.clone())
        arrived = microbatch_of(posted.index, 0, tuple(values))
        self.seen.look(self._gpu, arrived.index, arrived.values)


def sent_by(
    monkeypatch: pytest.MonkeyPatch, gpu: SimulatedGpu, depth: int
) -> tuple[staged.StagedSender, Asking]:
    monkeypatch.setattr(staged, "MpiSender", lambda edge, _, query: Asking(edge, gpu, query))
    edge: Any = SimpleNamespace(depth=depth)
    engine: Any = None
    sender = staged.StagedSender(edge, engine, gpu)
    asking: Any = sender._sender
    return sender, asking


def scheduler_of(seed: int) -> Scheduler:
    eagerness = Random(seed).choice([0.0, 0.3, 0.6, 0.9])
    return Scheduler(seed, POLICIES[seed % 5], eagerness)


def send(
    seed: int, sent: Sequence[Sequence[Item]], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimulatedGpu(scheduler_of(seed), "a")
    sender, asking = sent_by(monkeypatch, gpu, depth)
    for each in feed(gpu, sent):
        sender.send(each)
        disturb(gpu, Random(each.index))
        del each  # memory is let go of as soon as the channel allows it
    sender.end()
    sender.close()
    gpu.scheduler.drain()
    gpu.scheduler.assert_ordered()
    asking.seen.assert_equal(sent)


@pytest.mark.parametrize("seed", seeds(120))
def test_values_leave_as_they_lay(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_sending_looks_at_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine does; the host that sends goes on."""
    gpu = SimulatedGpu(Scheduler(eagerness=0), "a")
    sender, asking = sent_by(monkeypatch, gpu, 5)
    monkeypatch.setattr(asking, "_go_on", lambda looks: None)
    for index in range(4):
        sender.send(MicroBatch(index, (computed(gpu, torch.full((9,), index)),)))
    assert not gpu.scheduler.polled
    assert not gpu.scheduler.executed


def test_the_next_is_computed_while_one_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(Scheduler(eagerness=0), "a")
    sender, _ = sent_by(monkeypatch, gpu, 9)
    side = gpu.scheduler.streams[-1]
    monkeypatch.setattr(Asking, "_go_on", lambda *_: None)
    for index in range(6):
        sender.send(MicroBatch(index, (computed(gpu, torch.full((9,), index)),)))
    gpu.scheduler.run(held=[side])
    # Two slots are full, and a third micro-batch is computed that has no place.
    assert sum(each.label == "compute" for each in gpu.compute.waiting) == 3
    gpu.scheduler.drain()
    gpu.scheduler.assert_ordered()


def test_what_has_come_leaves_whatever_was_sent_since(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(eagerness=0)
    gpu, other = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    sender, asking = sent_by(monkeypatch, gpu, 3)
    gate, go_on = gpu.empty(8), asking._go_on
    monkeypatch.setattr(asking, "_go_on", lambda looks: None)
    for index in range(3):
        sender.send(MicroBatch(index, (computed(gpu, torch.full((9,), index)),)))
        if index == 0:  # what nobody sends
            left, _ = link(gpu, other)
            left.receive(gate.data_ptr(), 8, gpu.compute.cuda_stream)
    scheduler.run()
    go_on(20)
    assert asking.seen.indices == [0]
