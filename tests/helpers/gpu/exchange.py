"""Micro-batches that go through slots, from a simulated GPU over a second one to a third.

The three hosts are generators that take turns in one thread. The seeded order of turns makes
failures reproducible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

import torch

from pipepar.comm.gpu import slots
from pipepar.comm.gpu.cuda import Stream
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import (
    Policy,
    Scheduler,
    any_stream,
    newest,
    oldest,
    starving,
)

Batch: TypeAlias = list[torch.Tensor]

# There are seven streams: one for each of three GPUs, and one for each of four ends of channels.
POLICIES: list[Policy] = [any_stream, newest, oldest, *(starving(actor) for actor in range(7))]


@dataclass(frozen=True)
class Case:
    """The parameters of an exchange."""

    seed: int
    out_slots: int
    in_slots: int
    ahead: int
    """The number of slots that are posted before the first is taken."""
    eagerness: float
    eager: int
    """See `link`."""
    staged: bool = False
    """Whether to transfer through pinned memory instead of over a link."""

    @property
    def policy(self) -> Policy:
        return POLICIES[self.seed % len(POLICIES)]


def case(seed: int) -> Case:
    """Return a random case."""
    random = Random(seed)
    in_slots = random.choice([1, 2, 3])
    return Case(
        seed,
        out_slots=random.choice([1, 2, 3]),
        in_slots=in_slots,
        ahead=random.randint(1, in_slots),
        eagerness=random.choice([0.0, 0.3, 0.6, 0.9]),
        eager=random.choice([0, 0, 1 << 20]),
    )


class Linked:
    """Transfers slots over a link."""

    def __init__(self, a: SimulatedGpu, b: SimulatedGpu, eager: int) -> None:
        self._left, self._right = link(a, b, eager)

    def ready(self) -> bool:
        return True

    def out(self, memory: torch.Tensor, stream: Stream) -> None:
        self._left.send(memory.data_ptr(), memory.nbytes, stream.cuda_stream)

    def into(self, memory: torch.Tensor, stream: Stream) -> None:
        self._right.receive(memory.data_ptr(), memory.nbytes, stream.cuda_stream)


class Staged:
    """Transfers slots through the pinned memory of the hosts."""

    def __init__(self, a: SimulatedGpu, b: SimulatedGpu) -> None:
        self._a, self._b = a, b
        self._under_way: deque[tuple[Any, torch.Tensor]] = deque()

    def ready(self) -> bool:
        return bool(self._under_way) and bool(self._under_way[0][0].query())

    def out(self, memory: torch.Tensor, stream: Stream) -> None:
        pinned, event = self._a.pinned(memory.nbytes), self._a.event()
        self._a.copy(pinned, memory, stream)
        event.record(stream)
        self._under_way.append((event, pinned))

    def into(self, memory: torch.Tensor, stream: Stream) -> None:
        _, sent = self._under_way.popleft()
        self._a.touch(reads=[sent])
        pinned = self._b.pinned(memory.nbytes)
        self._b.touch(writes=[pinned])
        self._b.copy(memory, pinned.copy_(sent), stream)


def batches(random: Random, count: int = 7) -> list[Batch]:
    """Return micro-batches of several tensors of different sizes, some of them 0-d or empty."""
    shapes = [(), (0, 3), (5,), (3, 7), (40, 9), (31, 33)]
    dtypes = [torch.float32, torch.int64, torch.bfloat16, torch.bool]
    return [
        [
            torch.randint(0, 2 if dtype is torch.bool else 99, random.choice(shapes)).to(dtype)
            for dtype in random.choices(dtypes, k=random.randint(1, 3))
        ]
        for _ in range(count)
    ]


def begins(batch: Batch) -> list[int]:
    """Return the offset of each tensor in a slot, and the end of the last one."""
    offsets = [0]
    for value in batch:
        offsets.append(offsets[-1] + -(-value.nbytes // 16) * 16)
    return offsets


def tensor_from_buffer(memory: torch.Tensor, batch: Batch) -> Batch:
    return [
        memory[begin : begin + value.nbytes].view(value.dtype).view(value.shape)
        for begin, value in zip(begins(batch), batch, strict=False)
    ]


def copied(gpu: SimulatedGpu, values: Batch) -> Batch:
    """Return the results of a stage: copies of the values, made by kernels."""
    results = [gpu.empty(v.nbytes).view(v.dtype).view(v.shape) for v in values]
    for old, new in zip(values, results, strict=True):
        gpu.launch(gpu.compute, lambda old, new: new.copy_(old), [old], [new], "compute")
    return results


def disturb(gpu: SimulatedGpu, random: Random) -> None:
    """Launch other kernels, in memory that is freed at once."""
    for _ in range(random.randrange(3)):
        scratch = gpu.empty(random.choice([64, 700, 5000]))
        gpu.launch(
            gpu.compute, lambda scratch: scratch.fill_(0xFF), writes=[scratch], label="other"
        )


def produce(
    gpu: SimulatedGpu, outbox: Any, wire: Linked | Staged, sent: list[Batch]
) -> Iterator[None]:
    """Compute and send micro-batches, one in each turn."""
    random = Random(len(sent))
    for batch in sent:
        disturb(gpu, random)
        parts = []
        for begin, value in zip(begins(batch), batch, strict=False):
            result = gpu.empty(value.nbytes).view(value.dtype).view(value.shape)
            gpu.launch(
                gpu.compute, lambda new, v=value: new.copy_(v), writes=[result], label="compute"
            )
            parts.append((begin, result))
        outbox.leave(parts, begins(batch)[-1], wire.out)
        del parts, result
        yield


def arrive(
    gpu: SimulatedGpu, inbox: Any, wire: Linked | Staged, sent: list[Batch], ahead: int
) -> Iterator[Batch | None]:
    """Receive micro-batches.

    Yields:
        A micro-batch, valid until the next one; None in a turn without one.
    """
    posted = 0
    for index, batch in enumerate(sent):
        while posted < min(index + ahead, len(sent)):
            while not wire.ready():
                yield None
            disturb(gpu, Random(posted))
            inbox.post(begins(sent[posted])[-1], wire.into)
            posted += 1
            yield None
        yield tensor_from_buffer(inbox.take(), batch)
        inbox.release()


def relay(
    gpu: SimulatedGpu, outbox: Any, wire: Linked | Staged, arriving: Iterator[Batch | None]
) -> Iterator[None]:
    """Run a middle stage, which copies every second micro-batch and forwards the others."""
    count = 0
    for values in arriving:
        if values is not None:
            count += 1
            results = copied(gpu, values) if count % 2 else values
            parts = list(zip(begins(results), results, strict=False))
            outbox.leave(parts, begins(results)[-1], wire.out)
            del results, parts
        del values
        yield


def consume(
    gpu: SimulatedGpu, arriving: Iterator[Batch | None], found: list[Batch]
) -> Iterator[None]:
    """Append the received micro-batches to `found`, by a kernel."""
    for values in arriving:
        if values is not None:
            gpu.launch(
                gpu.compute,
                lambda *values: found.append([value.clone() for value in values]),
                reads=values,
                label="store result",
            )
        del values
        yield


def exchange(case: Case, ends: Any = slots) -> tuple[list[Batch], list[Batch], Scheduler]:
    """Send micro-batches from a GPU over a second one to a third.

    Args:
        case: the parameters.
        ends: a module with `Outbox` and `Inbox`.

    Returns:
        The micro-batches sent, those received, and the scheduler.
    """
    random = Random(case.seed)
    torch.manual_seed(case.seed)
    scheduler = Scheduler(case.seed, case.policy, case.eagerness)
    a, b, c = (SimulatedGpu(scheduler, name) for name in "abc")
    wires = [
        Staged(*pair) if case.staged else Linked(*pair, case.eager) for pair in ((a, b), (b, c))
    ]
    sent, found = batches(random), list[Batch]()
    first, second = ends.Outbox(a, case.out_slots), ends.Inbox(b, case.in_slots)
    third, fourth = ends.Outbox(b, case.out_slots), ends.Inbox(c, case.in_slots)
    hosts: list[Iterator[None]] = [
        produce(a, first, wires[0], sent),
        relay(b, third, wires[1], arrive(b, second, wires[0], sent, case.ahead)),
        consume(c, arrive(c, fourth, wires[1], sent, case.ahead), found),
    ]
    while hosts:
        host = random.choice(hosts)
        try:
            next(host)
        except StopIteration:
            hosts.remove(host)
    scheduler.drain()
    return sent, found, scheduler


def same(sent: Sequence[Batch], found: Sequence[Batch]) -> bool:
    return len(sent) == len(found) and all(
        torch.equal(old, new)
        for olds, news in zip(sent, found, strict=True)
        for old, new in zip(olds, news, strict=True)
    )
