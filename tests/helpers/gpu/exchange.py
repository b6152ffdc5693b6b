"""Micro-batches that go through slots, from a simulated GPU over a second one to a third.

The hosts of all three are generators in one thread, which go on in a seeded order, so that whatever
goes wrong goes wrong again.
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
from tests.helpers.simulated.scheduler import Policy, Scheduler, anyone, newest, oldest, starving

Batch: TypeAlias = list[torch.Tensor]

# Three GPUs compute on a stream each, and four ends of channels have one each.
POLICIES: list[Policy] = [anyone, newest, oldest, *(starving(actor) for actor in range(7))]


@dataclass(frozen=True)
class Case:
    """One way for micro-batches to go from a GPU over a second one to a third."""

    seed: int
    out_slots: int
    in_slots: int
    ahead: int
    """Slots that are posted before the first is taken."""
    eagerness: float
    eager: int
    """Bytes of which the link holds a copy."""
    staged: bool = False
    """Whether they go through pinned memory instead of over a link."""

    @property
    def policy(self) -> Policy:
        return POLICIES[self.seed % len(POLICIES)]


def case(seed: int) -> Case:
    """Any case."""
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
    """Moves slots over a link."""

    def __init__(self, a: SimulatedGpu, b: SimulatedGpu, eager: int) -> None:
        self._left, self._right = link(a, b, eager)

    def ready(self) -> bool:
        return True

    def out(self, memory: torch.Tensor, stream: Stream) -> None:
        self._left.send(memory.data_ptr(), memory.nbytes, stream.cuda_stream)

    def into(self, memory: torch.Tensor, stream: Stream) -> None:
        self._right.receive(memory.data_ptr(), memory.nbytes, stream.cuda_stream)


class Staged:
    """Moves slots through the hosts' pinned memory."""

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
    """Micro-batches of several tensors, ragged, some of them 0-d or empty."""
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
    """Where in a slot each tensor begins, and where the last one ends."""
    places = [0]
    for value in batch:
        places.append(places[-1] + -(-value.nbytes // 16) * 16)
    return places


def laid_out(memory: torch.Tensor, batch: Batch) -> Batch:
    return [
        memory[begin : begin + value.nbytes].view(value.dtype).view(value.shape)
        for begin, value in zip(begins(batch), batch, strict=False)
    ]


def made(gpu: SimulatedGpu, values: Batch, batch: Batch) -> Batch:
    """What a stage computes from a micro-batch: the same values, in other memory."""
    results = [gpu.empty(v.nbytes).view(v.dtype).view(v.shape) for v in batch]
    for old, new in zip(values, results, strict=True):
        gpu.launch(gpu.compute, lambda old, new: new.copy_(old), [old], [new], "compute")
    return results


def disturb(gpu: SimulatedGpu, random: Random) -> None:
    """Compute something else, in memory that is let go of at once."""
    for _ in range(random.randrange(3)):
        scratch = gpu.empty(random.choice([64, 700, 5000]))
        gpu.launch(
            gpu.compute, lambda scratch: scratch.fill_(0xFF), writes=[scratch], label="other"
        )


def produce(
    gpu: SimulatedGpu, outbox: Any, wire: Linked | Staged, sent: list[Batch]
) -> Iterator[None]:
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
    """Yields each micro-batch, to be used before the next; None while there is none."""
    posted = 0
    for index, batch in enumerate(sent):
        while posted < min(index + ahead, len(sent)):
            while not wire.ready():
                yield None
            disturb(gpu, Random(posted))
            inbox.post(begins(sent[posted])[-1], wire.into)
            posted += 1
            yield None
        yield laid_out(inbox.take(), batch)
        inbox.release()


def relay(
    gpu: SimulatedGpu, outbox: Any, wire: Linked | Staged, coming: Iterator[Batch | None]
) -> Iterator[None]:
    """A stage in the middle; every other micro-batch it passes on as it came."""
    count = 0
    for values in coming:
        if values is not None:
            count += 1
            results = made(gpu, values, values) if count % 2 else values
            parts = list(zip(begins(results), results, strict=False))
            outbox.leave(parts, begins(results)[-1], wire.out)
            del results, parts
        del values
        yield


def consume(
    gpu: SimulatedGpu, coming: Iterator[Batch | None], found: list[Batch]
) -> Iterator[None]:
    for values in coming:
        if values is not None:
            gpu.launch(
                gpu.compute,
                lambda *values: found.append([value.clone() for value in values]),
                reads=values,
                label="look",
            )
        del values
        yield


def exchange(case: Case, ends: Any = slots) -> tuple[list[Batch], list[Batch], Scheduler]:
    """Micro-batches from a GPU over a second one to a third; what was sent, and what was found."""
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
