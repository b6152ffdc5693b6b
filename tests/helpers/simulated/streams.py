"""Simulated CUDA streams and events, and what streams are told to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.helpers.simulated.order import Clock, Region

if TYPE_CHECKING:
    from tests.helpers.simulated.scheduler import Scheduler


class Operation:
    """Something that a stream has been told to do.

    Args:
        stream: which one.
        label: what it is called in messages.
        action: what it does to the bytes.
        reads: bytes that it reads.
        writes: bytes that it writes.
    """

    def __init__(
        self,
        stream: SimulatedStream,
        label: str,
        action: Callable[[], object] | None = None,
        reads: Sequence[Region] = (),
        writes: Sequence[Region] = (),
    ) -> None:
        self.stream = stream
        self.label = label
        self.action = action
        self.reads = reads
        self.writes = writes
        self.number = -1
        """How many the hosts had enqueued before, on all streams."""
        self.before: Clock = {}
        """What the host had seen done when it enqueued this."""
        self.after: Clock | None = None
        """What is done once this is."""

    @property
    def is_head(self) -> bool:
        return bool(self.stream.waiting) and self.stream.waiting[0] is self

    def may_run(self) -> bool:
        """Whether it could be executed now; asked of the head of a stream."""
        return True

    def execute(self) -> None:
        if self.action is not None:
            self.action()
        self.stream.scheduler.complete([self])

    def __str__(self) -> str:
        return f"{self.label} (operation {self.number} on {self.stream.name})"


class _Mark(Operation):
    """A place on a stream that an event was recorded at."""

    time = 0.0

    def execute(self) -> None:
        super().execute()
        self.time = self.stream.scheduler.milliseconds


class _Wait(Operation):
    """A stream's wait for a mark."""

    def __init__(self, stream: SimulatedStream, mark: _Mark) -> None:
        super().__init__(stream, f"wait for {mark}")
        self.mark = mark

    def may_run(self) -> bool:
        return self.mark.after is not None

    def execute(self) -> None:
        self.stream.scheduler.complete([self], self.mark.after or {})


class SimulatedStream:
    """See `Stream`; made by `Scheduler.stream`."""

    def __init__(self, scheduler: Scheduler, name: str, actor: int) -> None:
        self.scheduler = scheduler
        self.name = name
        self.actor = actor
        self.waiting: deque[Operation] = deque()
        self.clock: Clock = {}
        self.cuda_stream = 0x5000 + 16 * actor

    def wait_event(self, event: Any) -> None:
        if event.mark is not None:
            self.scheduler.enqueue(_Wait(self, event.mark))


class SimulatedEvent:
    """See `Event`."""

    def __init__(self, scheduler: Scheduler, handle: int, timed: bool = False) -> None:
        self._scheduler = scheduler
        self._handle = handle
        self._timed = timed
        self.mark: _Mark | None = None
        """Where it was recorded last."""

    @property
    def cuda_event(self) -> int:
        return 0 if self.mark is None else self._handle

    def record(self, stream: Any) -> None:
        self.mark = _Mark(stream, "record")
        self._scheduler.enqueue(self.mark)

    def query(self) -> bool:
        mark = self.mark
        return mark is None or self._scheduler.poll(mark)

    def elapsed_time(self, end_event: SimulatedEvent) -> float:
        first, last = self.mark, end_event.mark
        if not (self._timed and end_event._timed):
            raise ValueError("both events must have been made with timed=True")
        if first is None or last is None or first.after is None or last.after is None:
            raise ValueError("both events must have been recorded and come to")
        return last.time - first.time
