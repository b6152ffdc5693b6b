"""Executes the operations of simulated CUDA streams late, in any order that CUDA allows.

A scheduler has the streams of all GPUs. Each call that enqueues or polls executes some operations,
each from the head of a stream. A seeded policy chooses the stream, so a test with one thread is
reproducible.
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
    """Operations or hosts wait for events that never occur."""


Policy: TypeAlias = Callable[[Random, Sequence[SimulatedStream]], SimulatedStream]
"""Chooses one of the streams whose head can be executed."""


def any_stream(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
    """Choose at random."""
    return random.choice(streams)


def newest(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
    """Choose the operation that was enqueued last."""
    return max(streams, key=lambda stream: stream.waiting[0].number)


def oldest(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
    """Choose the operation that was enqueued first."""
    return min(streams, key=lambda stream: stream.waiting[0].number)


def starving(actor: int) -> Policy:
    """Return a policy that executes one stream only if no other can continue.

    Args:
        actor: the number of the stream, from 0 in the order of creation.
    """

    def pick(random: Random, streams: Sequence[SimulatedStream]) -> SimulatedStream:
        others = [stream for stream in streams if stream.actor != actor]
        return random.choice(others or streams)

    return pick


class Scheduler:
    """Executes the operations of simulated streams, in an order of its own.

    Args:
        seed: the seed of all choices.
        policy: chooses the stream of the next operation.
        eagerness: from 0, where nothing is executed before a call of `poll`, `run` or `drain`, to
            below 1, where the GPUs are almost never behind their hosts.
        patience: seconds that a host may poll without progress before `Deadlock` is raised.
    """

    def __init__(
        self,
        seed: int = 0,
        policy: Policy = any_stream,
        eagerness: float = 0.5,
        patience: float = 10.0,
    ) -> None:
        self.lock = threading.RLock()
        self.streams: list[SimulatedStream] = []
        self.executed = 0
        self.polled = 0
        self.milliseconds = 0.0
        self.faults: list[str] = []
        """The errors found: races, and transfers of different sizes."""
        self._random = Random(seed)
        self._policy = policy
        self._eagerness = eagerness
        self._patience = patience
        self._last_progress = time.monotonic()
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
            self._last_progress = time.monotonic()
            while self._random.random() < self._eagerness and self._step(()):
                pass

    def poll(self, mark: Operation) -> bool:
        """Return whether an operation is done; if so, it precedes later work of this thread."""
        with self.lock:
            self.polled += 1
            for _ in range(self._random.randrange(4)):
                self._step(())
            if mark.after is not None:
                self.learn(mark.after)
                return True
            if time.monotonic() - self._last_progress > self._patience:
                raise Deadlock(f"a host polls {mark} without progress\n{self._blocked()}")
            return False

    def run(self, held: Collection[SimulatedStream] = ()) -> None:
        """Execute all operations that can run, except those of the streams held."""
        with self.lock:
            while self._step(held):
                pass

    def drain(self) -> None:
        """Execute all operations; raise `Deadlock` if that is impossible."""
        with self.lock:
            self.run()
            if any(stream.waiting for stream in self.streams):
                raise Deadlock(f"no operation can run\n{self._blocked()}")

    def assert_ordered(self) -> None:
        """Raise AssertionError if errors were found so far."""
        assert not self.faults, "\n".join(self.faults)

    def seen(self) -> Clock:
        """Return the clock of this host thread: the operations that it has seen complete."""
        return getattr(self._host, "clock", {})

    def learn(self, clock: Clock) -> None:
        """Add a clock to the clock of this host thread."""
        self._host.clock = joined(self.seen(), clock)

    def touch(self, reads: Sequence[Region], writes: Sequence[Region]) -> None:
        """Note that this host thread reads and writes memory now."""
        with self.lock:
            if not hasattr(self._host, "actor"):
                self._host.actor = next(self._actors)
            actor = self._host.actor
            tick = self.seen().get(actor, 0) + 1
            self.learn({actor: tick})
            self._note("the host", actor, self.seen(), reads, writes)

    def complete(self, operations: Sequence[Operation], *before: Clock) -> None:
        """Note that operations, heads of their streams, were executed together.

        Args:
            operations: the operations.
            before: clocks of what precedes them.
        """
        clock = joined(*before, *(op.before for op in operations))
        clock = joined(clock, *(op.stream.clock for op in operations))
        for op in operations:
            clock[op.stream.actor] = clock.get(op.stream.actor, 0) + 1
        for op in operations:
            self._note(str(op), op.stream.actor, clock, op.reads, op.writes)
            op.after = op.stream.clock = clock
            op.stream.waiting.popleft()
            op.action = None  # it may refer to memory
        self.executed += len(operations)
        self.milliseconds += self._random.random()
        self._last_progress = time.monotonic()

    def _note(
        self,
        label: str,
        actor: int,
        clock: Clock,
        reads: Sequence[Region],
        writes: Sequence[Region],
    ) -> None:
        for regions, is_write in ((reads, False), (writes, True)):
            for region in regions:
                access = Access(actor, clock[actor], region.begin, region.end, is_write, label)
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

    def _blocked(self) -> str:
        return "\n".join(
            [
                f"{stream.waiting[0]}; {len(stream.waiting) - 1} behind it"
                for stream in self.streams
                if stream.waiting
            ]
            + self.faults
        )
