"""Stages on simulated GPUs, whose hosts are generators that go on in a seeded order in one thread.

So whatever goes wrong goes wrong again. No host ever waits for another: each goes on only when what
it asks for is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.comm.channels.memory import core, flat, plain
from pipepar.comm.channels.spec import Spec, describe, tells
from pipepar.comm.gpu import nccl_channel as gpu_channel
from pipepar.microbatch import MicroBatch, TensorSpec, Value
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import SimulatedCommunicator, link
from tests.helpers.simulated.scheduler import Deadlock

# Turns of all hosts in which none of them goes on, before they never will.
_PATIENCE: Final = 2000

View = Callable[[torch.Tensor], torch.Tensor]

VIEWS: list[View] = [
    lambda x: x,
    lambda x: x,
    lambda x: x,
    lambda x: x.t(),
    lambda x: x[1:],
    lambda x: x[:, ::2],
    lambda x: x[1:, 1:3],
    lambda x: x[:, :1].expand(-1, 7),
    lambda x: x[::2, ::3][:, None, :].expand(-1, 4, -1),
    lambda x: x[0, 0],
    lambda x: x[:0],
    lambda x: x.flatten().unfold(0, 2, 1),
    lambda x: x.conj(),
    lambda x: x.conj().imag if x.is_complex() else x,
]
SHAPES: list[tuple[int, int]] = [(1, 3), (2, 5), (3, 4), (7, 40), (30, 33)]
DTYPES = [torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.complex64, torch.uint8]
OTHERS: list[Value] = [None, True, 7, -1 << 40, 2.5, 1j, "text", "ein \U0001f600 wort", ""]


@dataclass(frozen=True)
class Item:
    """A value of a test: on the host, or to be put on a GPU."""

    base: Value
    view: View
    resident: bool

    @property
    def expected(self) -> Value:
        return plain(self.view(self.base)) if isinstance(self.base, torch.Tensor) else self.base

    def on(self, gpu: SimulatedGpu) -> Value:
        """The value as a stage on that GPU has it; computed late."""
        if not isinstance(self.base, torch.Tensor):
            return self.base
        return self.view(computed(gpu, self.base) if self.resident else self.base)


def items(random: Random, count: int, resident: float = 0.7) -> list[Item]:
    """Values of all kinds."""
    made = []
    for _ in range(count):
        dtype = random.choice(DTYPES)
        base = torch.randint(0, 2 if dtype is torch.bool else 99, random.choice(SHAPES))
        lies = random.random() < resident
        is_tensor = lies or random.random() < 0.6
        made.append(
            Item(base.to(dtype) if is_tensor else random.choice(OTHERS), random.choice(VIEWS), lies)
        )
    return made


def computed(gpu: SimulatedGpu, value: torch.Tensor) -> torch.Tensor:
    """That value, computed by the GPU."""
    result = gpu.empty(value.nbytes).view(value.dtype).view(value.shape)
    gpu.launch(gpu.compute, lambda new: new.copy_(value), writes=[result], label="compute")
    return result


def passed_on(gpu: SimulatedGpu, value: Value) -> Value:
    """What a stage computes of a value: the same, in other memory but as it lay."""
    if not isinstance(value, torch.Tensor) or not gpu.lies(value):
        return value
    value = plain(value)
    assert isinstance(value, torch.Tensor)
    spec = TensorSpec.of(value)
    result = value.new_empty_strided(spec.shape, spec.stride, dtype=spec.dtype)
    bare = core if spec.has_holes else flat
    gpu.launch(
        gpu.compute,
        lambda old, new: bare(new).copy_(bare(old)),
        [value],
        [result],
        "compute",
    )
    return result


def disturb(gpu: SimulatedGpu, random: Random) -> None:
    """Compute something else, in memory that is let go of at once."""
    for _ in range(random.randrange(3)):
        scratch = gpu.empty(random.choice([64, 700, 5000]))
        gpu.launch(gpu.compute, lambda x: x.fill_(0xFF), writes=[scratch], label="other")


class Seen:
    """What the last stage found, as its GPU or its host came to look."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.values: list[list[Value]] = []
        self.specs: list[list[TensorSpec | None]] = []

    def look(self, gpu: SimulatedGpu, index: int, values: Sequence[Value]) -> None:
        found = list(values)
        self.indices.append(index)
        self.values.append(found)
        self.specs.append(
            [TensorSpec.of(v) if isinstance(v, torch.Tensor) else None for v in values]
        )
        for position, value in enumerate(values):
            if isinstance(value, torch.Tensor) and gpu.holds(value):
                found[position] = None
                gpu.launch(gpu.compute, _noting(found, position), reads=[value], label="look")

    def assert_equal(self, sent: Sequence[Sequence[Item]], starts: Sequence[int] = (0,)) -> None:
        """Raise unless this is what was sent, in streams that start there."""
        assert len(self.values) == len(sent)
        for number, each in enumerate(sent):
            start = max(start for start in starts if start <= number)
            assert self.indices[number] == number - start
            expected = [item.expected for item in each]
            for value, spec, found in zip(
                expected, self.specs[number], self.values[number], strict=True
            ):
                assert_same(value, spec, found)


def _noting(found: list[Value], position: int) -> Callable[[torch.Tensor], None]:
    def note(value: torch.Tensor) -> None:
        found[position] = value.clone()

    return note


def assert_same(expected: Value, spec: TensorSpec | None, found: Value) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert spec == TensorSpec.of(expected)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert type(found) is type(expected)
        assert found == expected


class Told(InprocChannel):
    """A channel between hosts that counts what goes over the wire beside headers and tensors."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.specs: list[Spec] = []
        """Every one that differs from the one before."""
        self.sent = 0
        self.ends = 0
        """Taken so far."""

    def put(self, item: MicroBatch | None) -> None:
        if item is not None:
            assert self.has_room(), "a host would wait"
            if not self.specs or not tells(self.specs[-1], item.values):
                self.specs.append(tuple(map(describe, item.values)))
            self.sent += 1
        super().put(item)

    def take(self) -> MicroBatch | None:
        assert not self.is_empty(), "a host would wait"
        item = super().take()
        self.ends += item is None
        return item


@dataclass
class Edge:
    """A channel between two simulated GPUs, with both of its ends."""

    told: Told
    transports: tuple[SimulatedCommunicator, SimulatedCommunicator]
    sender: gpu_channel.GpuSender
    receiver: gpu_channel.GpuReceiver
    streams: int = 0
    """That the receiving host is done with."""

    @staticmethod
    def between(
        a: SimulatedGpu,
        b: SimulatedGpu,
        depth: int = 2,
        eager: int = 0,
        watches: Sequence[gpu_channel.Watch | None] = (None, None),
        slots: int | None = None,
    ) -> Edge:
        told, (left, right) = Told(depth), link(a, b, eager)
        sender = gpu_channel.GpuSender(told.sender, left, a, slots or depth, watches[0])
        receiver = gpu_channel.GpuReceiver(told.receiver, right, b, watches[1])
        return Edge(told, (left, right), sender, receiver)

    def is_ready(self) -> bool:
        return self.receiver.ready() or self.told.ends > self.streams

    def received(self) -> Iterator[MicroBatch]:
        """One stream."""
        yield from self.receiver.receive()
        self.streams += 1

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def when(may_go: Callable[[], bool], work: Iterator[object]) -> Iterator[bool]:
    """A host that does some work whenever it may; yields whether it did."""
    done = object()
    while True:
        while not may_go():
            yield False
        if next(work, done) is done:
            return
        yield True


def drive(random: Random, hosts: Sequence[Iterator[bool]]) -> None:
    """Let hosts go on in any order until all are done."""
    going, idle = list(hosts), 0
    while going:
        host = random.choice(going)
        went = next(host, None)
        if went is None:
            going.remove(host)
        idle = idle + 1 if went is False else 0
        if idle > _PATIENCE:
            raise Deadlock("every host waits for another")


def feed(gpu: SimulatedGpu, sent: Sequence[Sequence[Item]]) -> Iterator[MicroBatch]:
    """The micro-batches of one stream."""
    random = Random(len(sent))
    for index, each in enumerate(sent):
        disturb(gpu, random)
        yield MicroBatch(index, tuple(item.on(gpu) for item in each))
