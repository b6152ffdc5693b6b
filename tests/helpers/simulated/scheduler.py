"""What simulated CUDA streams are told is done later, in the least helpful order allowed.

A scheduler holds the streams of all GPUs. Whoever enqueues or polls has it execute some operations,
each the head of a stream that is not waiting; which one, a seeded policy says. So a test of one
thread can be repeated exactly.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TypeAlias

from tests.helpers.simulated.order import Access, Clock, Region, joined
from tests.helpers.simulated.streams import Operation, SimulatedStream


class Deadlock(RuntimeError):
    """Operations wait for what never comes."""


Policy: TypeAlias = Callable[[Random, Sequence[SimulatedStream]], SimulatedStream]
"""Picks one of the streams that could go on."""


def anyone(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
    """Whichever."""
    return random.choice(streams)


def newest(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
    """What was enqueued last goes first."""
    return max(streams, key=lambda stream: stream.waiting[0].number)


def oldest(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
    """As far as possible in the order enqueued."""
    return min(streams, key=lambda stream: stream.waiting[0].number)


def starving(actor: int) -> Policy:
    """One stream only goes on when no other can; they count from 0 in the order made."""

    def pick(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
        others = [stream for stream in streams if stream.actor != actor]
        return random.choice(others or streams)

    return pick


class Scheduler:
    """Executes what simulated streams were told, in an order of its own.

    Args:
        seed: of all that it chooses.
        policy: which stream goes on.
        eagerness: from 0, where nothing is executed before somebody polls or drains, to below 1,
            where the GPUs are hardly ever behind their hosts.
        patience: seconds in which a host may poll while nothing moves, before it is a deadlock.
    """

    def __init__(
        self,
        seed: int = 0,
        policy: Policy = anyone,
        eagerness: float = 0.5,
        patience: float = 10.0,
    ) -> None:
        self.lock = threading.RLock()
        self.streams: list[SimulatedStream] = []
        self.executed = 0
        self.polled = 0
        self.milliseconds = 0.0
        self.faults: list[str] = []
        """What was found wrong: races, and transfers that do not fit."""
        self._random = Random(seed)
        self._policy = policy
        self._eagerness = eagerness
        self._patience = patience
        self._moved = time.monotonic()
        self._actors = itertools.count()
        self._numbers = itertools.count()
        self._host = threading.local()

    def stream(self, name: str) -> SimulatedStream:
        with self.lock:
            self.streams.append(SimulatedStream(self, name, next(self._actors)))
            return self.streams[-1]

    def enqueue(self, operation: Operation) -> None:
        with self.lock:
            operation.number = next(self._numbers)
            operation.before = self.seen()
            operation.stream.waiting.append(operation)
            self._moved = time.monotonic()
            while self._random.random() < self._eagerness and self._step(()):
                pass

    def poll(self, mark: Operation) -> bool:
        """Whether an operation is done, which this thread of the host then has seen."""
        with self.lock:
            self.polled += 1
            for _ in range(self._random.randrange(4)):
                self._step(())
            if mark.after is not None:
                self.hear(mark.after)
                return True
            if time.monotonic() - self._moved > self._patience:
                raise Deadlock(f"a host polls for {mark}, but nothing moves\n{self._stuck()}")
            return False

    def run(self, held: Collection[SimulatedStream] = ()) -> None:
        """Execute all that can be, but nothing at the head of the streams held."""
        with self.lock:
            while self._step(held):
                pass

    def drain(self) -> None:
        """Execute everything; raises `Deadlock` where that cannot be."""
        with self.lock:
            self.run()
            if any(stream.waiting for stream in self.streams):
                raise Deadlock(f"nothing can go on\n{self._stuck()}")

    def assert_ordered(self) -> None:
        """Raise if anything was found wrong so far."""
        assert not self.faults, "\n".join(self.faults)

    def seen(self) -> Clock:
        """What this thread of the host has seen done, to be told to another thread."""
        return getattr(self._host, "clock", {})

    def hear(self, clock: Clock) -> None:
        """This thread of the host learns what has been done."""
        self._host.clock = joined(self.seen(), clock)

    def touch(self, reads: Sequence[Region], writes: Sequence[Region]) -> None:
        """This thread of the host reads and writes memory itself, at once."""
        with self.lock:
            if not hasattr(self._host, "actor"):
                self._host.actor = next(self._actors)
            actor = self._host.actor
            tick = self.seen().get(actor, 0) + 1
            self.hear({actor: tick})
            self._note("the host", actor, self.seen(), reads, writes)

    def complete(self, operations: Sequence[Operation], *learnt: Clock) -> None:
        """Operations, heads of their streams, were done together, after what clocks include."""
        clock = joined(*learnt, *(op.before for op in operations))
        clock = joined(clock, *(op.stream.clock for op in operations))
        for op in operations:
            clock[op.stream.actor] = clock.get(op.stream.actor, 0) + 1
        for op in operations:
            self._note(str(op), op.stream.actor, clock, op.reads, op.writes)
            op.after = op.stream.clock = clock
            op.stream.waiting.popleft()
            op.action = None  # it may hold on to memory
        self.executed += len(operations)
        self.milliseconds += self._random.random()
        self._moved = time.monotonic()

    def _note(
        self, who: str, actor: int, clock: Clock, reads: Sequence[Region], writes: Sequence[Region]
    ) -> None:
        for regions, is_write in ((reads, False), (writes, True)):
            for region in regions:
                access = Access(actor, clock[actor], region.begin, region.end, is_write, who)
                self.faults += region.block.access(access, clock)

    def _step(self, held: Collection[SimulatedStream]) -> bool:
        ready = [
            stream
            for stream in self.streams
            if stream.waiting and stream not in held and stream.waiting[0].may_run()
        ]
        if ready:
            self._policy(self._random, ready).waiting[0].execute()
        return bool(ready)

    def _stuck(self) -> str:
        return "\n".join(
            [
                f"{stream.waiting[0]}; {len(stream.waiting) - 1} behind it"
                for stream in self.streams
                if stream.waiting
            ]
            + self.faults
        )
