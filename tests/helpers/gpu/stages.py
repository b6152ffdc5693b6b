"""Stages on simulated GPUs; their hosts are generators that take turns in one thread.

The seeded order of turns makes failures reproducible. A host takes a turn only if it would not
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.comm.channels.memory import core, flat, plain
from pipepar.comm.channels.spec import Spec, describe, matches_spec
from pipepar.comm.gpu import nccl_channel as gpu_channel
from pipepar.microbatch import MicroBatch, TensorSpec, Value
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import SimulatedCommunicator, link
from tests.helpers.simulated.scheduler import Deadlock

# Turns without progress of any host before `Deadlock` is raised.
_MAX_IDLE_TURNS: Final = 2000

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
    """A value of a test, for the host or for a GPU."""

    base: Value
    view: View
    resident: bool

    @property
    def expected(self) -> Value:
        return plain(self.view(self.base)) if isinstance(self.base, torch.Tensor) else self.base

    def on(self, gpu: SimulatedGpu) -> Value:
        """Return the value as the result of a stage on a GPU."""
        if not isinstance(self.base, torch.Tensor):
            return self.base
        return self.view(computed(gpu, self.base) if self.resident else self.base)


def items(random: Random, count: int, resident: float = 0.7) -> list[Item]:
    """Return random values of all kinds; `resident` is the share of tensors on the GPU."""
    made = []
    for _ in range(count):
        dtype = random.choice(DTYPES)
        base = torch.randint(0, 2 if dtype is torch.bool else 99, random.choice(SHAPES))
        on_gpu = random.random() < resident
        is_tensor = on_gpu or random.random() < 0.6
        value = base.to(dtype) if is_tensor else random.choice(OTHERS)
        made.append(Item(value, random.choice(VIEWS), on_gpu))
    return made


def computed(gpu: SimulatedGpu, value: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the GPU into which a kernel copies the value."""
    result = gpu.empty(value.nbytes).view(value.dtype).view(value.shape)
    gpu.launch(gpu.compute, lambda new: new.copy_(value), writes=[result], label="compute")
    return result


def passed_on(gpu: SimulatedGpu, value: Value) -> Value:
    """Return a copy of a value with the same strides, made by a kernel if it is on the GPU."""
    if not isinstance(value, torch.Tensor) or not gpu.has_bytes(value):
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
    """Launch other kernels, in memory that is freed at once."""
    for _ in range(random.randrange(3)):
        scratch = gpu.empty(random.choice([64, 700, 5000]))
        gpu.launch(gpu.compute, lambda x: x.fill_(0xFF), writes=[scratch], label="other")


class Results:
    """The values that the last stage has received, read by a kernel or by its host."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.values: list[list[Value]] = []
        self.specs: list[list[TensorSpec | None]] = []

    def read(self, gpu: SimulatedGpu, index: int, values: Sequence[Value]) -> None:
        found = list(values)
        self.indices.append(index)
        self.values.append(found)
        self.specs.append(
            [TensorSpec.of(v) if isinstance(v, torch.Tensor) else None for v in values]
        )
        for position, value in enumerate(values):
            if isinstance(value, torch.Tensor) and gpu.holds(value):
                found[position] = None
                gpu.launch(
                    gpu.compute, _store_in(found, position), reads=[value], label="store result"
                )

    def assert_equal(self, sent: Sequence[Sequence[Item]], starts: Sequence[int] = (0,)) -> None:
        """Raise AssertionError unless the results equal `sent`.

        Args:
            sent: the micro-batches of all streams.
            starts: the positions in `sent` at which a stream begins.
        """
        assert len(self.values) == len(sent)
        for number, each in enumerate(sent):
            start = max(start for start in starts if start <= number)
            assert self.indices[number] == number - start
            expected = [item.expected for item in each]
            for value, spec, found in zip(
                expected, self.specs[number], self.values[number], strict=True
            ):
                assert_same(value, spec, found)


def _store_in(found: list[Value], position: int) -> Callable[[torch.Tensor], None]:
    def store(value: torch.Tensor) -> None:
        found[position] = value.clone()

    return store


def assert_same(expected: Value, spec: TensorSpec | None, found: Value) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert spec == TensorSpec.of(expected)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert type(found) is type(expected)
        assert found == expected


class HostChannel(InprocChannel):
    """A channel between hosts that counts micro-batches and specs, and refuses to block."""

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.specs: list[Spec] = []
        """The specs that differ from the one before; only these would be sent."""
        self.sent = 0
        """The number of micro-batches sent."""
        self.ends = 0
        """The number of ends of streams received."""

    def put(self, item: MicroBatch | None) -> None:
        if item is not None:
            assert self.has_room(), "the sending host would block"
            if not self.specs or not matches_spec(self.specs[-1], item.values):
                self.specs.append(tuple(map(describe, item.values)))
            self.sent += 1
        super().put(item)

    def take(self) -> MicroBatch | None:
        assert not self.is_empty(), "the receiving host would block"
        item = super().take()
        self.ends += item is None
        return item


@dataclass
class Edge:
    """A channel between two simulated GPUs, with both of its ends."""

    host_channel: HostChannel
    transports: tuple[SimulatedCommunicator, SimulatedCommunicator]
    sender: gpu_channel.GpuSender
    receiver: gpu_channel.GpuReceiver
    streams: int = 0
    """The number of streams that the receiving host has finished."""

    @staticmethod
    def between(
        a: SimulatedGpu,
        b: SimulatedGpu,
        depth: int = 2,
        eager: int = 0,
        watches: Sequence[gpu_channel.Watch | None] = (None, None),
        slots: int | None = None,
    ) -> Edge:
        host_channel, (left, right) = HostChannel(depth), link(a, b, eager)
        sender = gpu_channel.GpuSender(host_channel.sender, left, a, slots or depth, watches[0])
        receiver = gpu_channel.GpuReceiver(host_channel.receiver, right, b, watches[1])
        return Edge(host_channel, (left, right), sender, receiver)

    def is_ready(self) -> bool:
        return self.receiver.ready() or self.host_channel.ends > self.streams

    def received(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches of one stream."""
        yield from self.receiver.receive()
        self.streams += 1

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def host(is_ready: Callable[[], bool], work: Iterator[object]) -> Iterator[bool]:
    """Return a host for `run_hosts`: each turn does one step of the work if that is ready.

    Yields:
        Whether the turn has done a step.
    """
    done = object()
    while True:
        while not is_ready():
            yield False
        if next(work, done) is done:
            return
        yield True


def run_hosts(random: Random, hosts: Sequence[Iterator[bool]]) -> None:
    """Give hosts turns in random order until all are done."""
    running, idle = list(hosts), 0
    while running:
        turn = random.choice(running)
        progressed = next(turn, None)
        if progressed is None:
            running.remove(turn)
        idle = idle + 1 if progressed is False else 0
        if idle > _MAX_IDLE_TURNS:
            raise Deadlock("every host waits for another")


def feed(gpu: SimulatedGpu, sent: Sequence[Sequence[Item]]) -> Iterator[MicroBatch]:
    """Yield the micro-batches of one stream."""
    random = Random(len(sent))
    for index, each in enumerate(sent):
        disturb(gpu, random)
        yield MicroBatch(index, tuple(item.on(gpu) for item in each))
