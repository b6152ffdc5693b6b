"""Spans of time and their totals, measured or predicted, and the file for a trace viewer."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

from pipepar.files import write_whole

Kind = Literal["source", "receive", "compute", "send", "sink"]
Activity: TypeAlias = Kind | Literal["other", "caller"]
"""The activity of a rank: a step of a micro-batch, "other" work, or "caller", the user's script."""

ACTIVITY_NUMBERS: Final[dict[Activity, int]] = {
    "other": 0,
    "source": 1,
    "receive": 2,
    "compute": 3,
    "send": 4,
    "sink": 5,
    "caller": 6,
}
"""The numbers of the activities in the native heartbeat."""

Mark: TypeAlias = Any
"""A point in time, made by `Clock.now` and read by `Clock.seconds` of the same clock."""

# Interval at which marks that are not reached yet are polled.
_POLL_SECONDS: Final = 1e-4


class Clock(Protocol):
    """The clock of a stage: its host's clock, or events on its CUDA stream."""

    def now(self) -> Mark:
        """Return a mark at the end of the work that the stage has enqueued, without waiting."""

    def seconds(self, mark: Mark) -> float | None:
        """Return the time of a mark in seconds of `time.perf_counter`, or None if not reached yet.

        Call it for marks roughly in the order in which they were made.
        """


class HostClock:
    """The clock of a stage that computes on the host: marks are reached at once."""

    def now(self) -> Mark:
        """Return the time in seconds; see `Clock.now`."""
        return time.perf_counter()

    def seconds(self, mark: Mark) -> float | None:
        """Return the mark itself, which is in seconds; see `Clock.seconds`."""
        return float(mark)


@dataclass(frozen=True, slots=True)
class Span:
    """The time that a stage spent on one kind of work for one micro-batch."""

    stage: int
    kind: Kind
    microbatch: int
    begin: float
    """Seconds on the clock of the stage's host."""
    end: float
    """Seconds on the same clock."""
    beside: bool = False
    """Whether it overlaps the stage's own spans, as transfers of a GPU do."""

    @property
    def seconds(self) -> float:
        """The duration."""
        return self.end - self.begin


@dataclass(slots=True)
class Totals:
    """The sums over all spans of one kind on one stage."""

    count: int = 0
    """Number of micro-batches."""
    seconds: float = 0.0
    """Total duration."""
    first: float = 0.0
    """Seconds of the first micro-batch, summed over the streams."""
    last: float = 0.0
    """Seconds of the last micro-batch, summed over the streams."""
    latest: float = 0.0
    """Seconds of the micro-batch that was added most recently."""

    def add(self, seconds: float, begins: bool = False) -> None:
        """Add the span of one micro-batch.

        Args:
            seconds: its duration.
            begins: whether it is the first of a stream.
        """
        if begins or self.count == 0:
            self.first += seconds
        else:
            self.last -= self.latest
        self.count += 1
        self.seconds += seconds
        self.last += seconds
        self.latest = seconds

    def joined(self, later: Totals) -> Totals:
        """Return the sum of these totals and those of later streams."""
        return Totals(
            self.count + later.count,
            self.seconds + later.seconds,
            self.first + later.first,
            self.last + later.last,
            later.latest,
        )


class Tracer:
    """Records the time of one stage: always as totals, and on request as single spans.

    Args:
        stage: the stage, 0-based.
        keeps_spans: whether to store every span, which takes memory for every micro-batch.
        clock: the clock of the stage; None for the host's.
        enter: called when the stage begins an activity, with the activity, the micro-batch and,
            if known, its samples.
    """

    def __init__(
        self,
        stage: int,
        keeps_spans: bool = False,
        clock: Clock | None = None,
        enter: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.stage = stage
        self.keeps_spans = keeps_spans
        self.enter = enter
        self.clock: Clock = clock or HostClock()
        self.totals: dict[Kind, Totals] = {kind: Totals() for kind in get_args(Kind)}
        self.gaps = 0.0
        """Seconds between consecutive records within a stream. The time before a stream's first
        micro-batch does not count, because the stage waits between streams."""
        self.spans: list[Span] = []
        self._end: float | None = None
        self._pending: deque[tuple[Kind, int, Mark, Mark]] = deque()
        self._overlapping: deque[tuple[Kind, int, Mark, Mark]] = deque()

    def record(self, kind: Kind, microbatch: int, begin: Mark, end: Mark) -> None:
        """Record a span; call it in the order of time.

        Args:
            kind: the kind of work.
            microbatch: index of the micro-batch in its stream.
            begin: mark of `clock`.
            end: mark of `clock`.
        """
        seconds = self.clock.seconds
        if not self._pending and not self._overlapping:  # the fast path, for the marks of a host
            first, last = seconds(begin), seconds(end)
            if first is not None and last is not None:
                self._count(kind, microbatch, first, last)
                return
        self._pending.append((kind, microbatch, begin, end))
        self._settle()

    def record_overlapping(self, kind: Kind, microbatch: int, begin: Mark, end: Mark) -> None:
        """Store a span that overlaps others, even without `keeps_spans`; totals exclude it."""
        self._overlapping.append((kind, microbatch, begin, end))
        self._settle()

    def finish(self) -> None:
        """Wait until all recorded marks are reached; only then are the totals complete."""
        while self._pending or self._overlapping:
            self._settle()
            if self._pending or self._overlapping:
                time.sleep(_POLL_SECONDS)

    def add_totals(self, other: Tracer) -> None:
        """Add the totals and spans of another tracer of this rank, whose thread has ended."""
        other.finish()
        for kind, totals in other.totals.items():
            if totals.count:
                self.totals[kind] = self.totals[kind].joined(totals)
        self.spans += other.spans

    def _settle(self) -> None:
        """Count the spans whose marks are reached; a late read loses precision and keeps events."""
        self._take_reached(self._pending, self._count)
        if self._overlapping:
            self._take_reached(self._overlapping, self._store_overlapping)

    def _take_reached(
        self,
        pending: deque[tuple[Kind, int, Mark, Mark]],
        count: Callable[[Kind, int, float, float], None],
    ) -> None:
        seconds = self.clock.seconds
        while pending:
            kind, microbatch, first, last = pending[0]
            begin, end = seconds(first), seconds(last)
            if begin is None or end is None:
                return
            pending.popleft()
            count(kind, microbatch, begin, end)

    def _store_overlapping(self, kind: Kind, microbatch: int, begin: float, end: float) -> None:
        self.spans.append(Span(self.stage, kind, microbatch, begin, end, beside=True))

    def _count(self, kind: Kind, microbatch: int, begin: float, end: float) -> None:
        self.totals[kind].add(end - begin, begins=microbatch == 0)
        if microbatch and self._end is not None:
            self.gaps += begin - self._end
        self._end = end
        if self.keeps_spans:
            self.spans.append(Span(self.stage, kind, microbatch, begin, end))

    @contextmanager
    def span(self, kind: Kind, microbatch: int) -> Iterator[None]:
        """Call `enter`, and record the time of the ``with`` body, also when it raises."""
        self.enter(kind, microbatch)
        begin = self.clock.now()
        try:
            yield
        finally:
            self.record(kind, microbatch, begin, self.clock.now())


def paths(work: Sequence[Totals]) -> list[float]:
    """Return for each stage the minimum run time that its own work implies, in seconds.

    This is the time of the first micro-batch in all earlier stages, plus all work of the stage,
    plus the time of the last micro-batch in all later stages.

    Args:
        work: the totals of each stage, in the order of the pipeline.
    """
    firsts = [0.0, *accumulate(each.first for each in work)]
    lasts = [0.0, *accumulate(each.last for each in reversed(work))][::-1]
    return [firsts[stage] + each.seconds + lasts[stage + 1] for stage, each in enumerate(work)]


def bound(compute: Sequence[Totals]) -> float:
    """Return the run time of a perfect pipeline, in seconds: the maximum of `paths`.

    No pipeline with these compute times is faster. For M equal micro-batches this is sum(t) +
    (M - 1) max(t) over the stage times t. Streams do not overlap: each ends before the next begins.

    Args:
        compute: the compute totals of each stage, in the order of the pipeline.
    """
    return max(paths(compute), default=0.0)


def write_chrome_trace(path: Path, spans: Iterable[Span]) -> None:
    """Write spans for chrome://tracing or Perfetto: a row per stage, and one for its transfers.

    Args:
        path: the file; see `write_whole`.
        spans: spans of all stages, on one clock.

    Raises:
        OSError: the file system refused the write.
    """
    shown = list(spans)
    rows = sorted({(span.beside, span.stage) for span in shown})
    names: list[dict[str, Any]] = [
        {
            "name": "thread_name",
            "cat": "__metadata",
            "ph": "M",
            "pid": int(beside),
            "tid": stage,
            "args": {"name": f"stage {stage}{', transfers' * beside}"},
        }
        for beside, stage in rows
    ]
    events: list[dict[str, Any]] = [
        {
            "name": f"{span.kind} {span.microbatch}",
            "cat": span.kind,
            "ph": "X",
            "pid": int(span.beside),
            "tid": span.stage,
            "ts": span.begin * 1e6,
            "dur": span.seconds * 1e6,
        }
        for span in shown
    ]
    write_whole(path, json.dumps({"traceEvents": events + names, "displayTimeUnit": "ms"}))
