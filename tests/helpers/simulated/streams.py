"""Simulated CUDA streams and events, and the operations of streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tests.helpers.simulated.order import Clock, Region

if TYPE_CHECKING:
    from tests.helpers.simulated.scheduler import Scheduler


class Operation:
    """An operation that is enqueued on a stream.

    Args:
        stream: the stream.
        label: the name in messages.
        action: the change of the bytes.
        reads: the bytes that it reads.
        writes: the bytes that it writes.
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
        """The number of operations enqueued before, on all streams."""
        self.before: Clock = {}
        """The clock of the host thread when it enqueued this."""
        self.after: Clock | None = None
        """The clock after this operation; None while it is not done."""

    @property
    def is_head(self) -> bool:
        return bool(self.stream.waiting) and self.stream.waiting[0] is self

    def may_run(self) -> bool:
        """Return whether it can be executed now, given that it is the head of its stream."""
        return True

    def execute(self) -> None:
        if self.action is not None:
            self.action()
        self.stream.scheduler.complete([self])

    def __str__(self) -> str:
        return f"{self.label} (operation {self.number} on {self.stream.name})"


class _Mark(Operation):
    """The position in a stream at which an event was recorded."""

    time = 0.0

    def execute(self) -> None:
        super().execute()
        self.time = self.stream.scheduler.milliseconds


class _Wait(Operation):
    """A wait of a stream for a mark."""

    def __init__(self, stream: SimulatedStream, mark: _Mark) -> None:
        super().__init__(stream, f"wait for {mark}")
        self.mark = mark

    def may_run(self) -> bool:
        return self.mark.after is not None

    def execute(self) -> None:
        self.stream.scheduler.complete([self], self.mark.after or {})


class SimulatedStream:
    """See `Stream`; created by `Scheduler.stream`."""

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
        """The position of the last record; None before the first."""

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
            raise ValueError("both events must have been created with timed=True")
        if first is None or last is None or first.after is None or last.after is None:
            raise ValueError("both events must have been recorded and completed")
        return last.time - first.time
