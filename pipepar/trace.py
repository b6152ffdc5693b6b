"""Where time went: every clock reading of the project ends in a Span.

Measured and predicted timelines are the same Spans, and open in the same viewer.
"""

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
Doing: TypeAlias = Kind | Literal["other", "caller"]
"""What a stage is at: with a micro-batch, with something else, or in the hands of a script."""

DOINGS: Final[dict[Doing, int]] = {
    "other": 0,
    "source": 1,
    "receive": 2,
    "compute": 3,
    "send": 4,
    "sink": 5,
    "caller": 6,
}
"""Their numbers, as the native pulse knows them."""

Mark: TypeAlias = Any
"""A point in time, as the clock made it that can read it."""

# Between two looks at a mark that has not come yet.
_LOOK_SECONDS: Final = 1e-4


class Clock(Protocol):
    """What a stage's times are taken by: its host's clock, or what its device does."""

    def now(self) -> Mark:
        """The point that the stage has been told to come to so far. Waits for nothing."""

    def seconds(self, mark: Mark) -> float | None:
        """When it was, as `time.perf_counter` would have told; None while it is yet to come.

        Marks are asked about in about the order in which they were made.
        """


class HostClock:
    """A stage that computes on its host is where it has been told to be."""

    def now(self) -> Mark:
        """See `Clock.now`."""
        return time.perf_counter()

    def seconds(self, mark: Mark) -> float | None:
        """See `Clock.seconds`."""
        return float(mark)


@dataclass(frozen=True, slots=True)
class Span:
    """One thing that one stage did for one micro-batch."""

    stage: int
    kind: Kind
    microbatch: int
    begin: float
    """Seconds on the clock of the stage's host."""
    end: float
    """Seconds, the same clock."""
    beside: bool = False
    """Whether it went on beside what the stage did, as a GPU's transfers do."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(slots=True)
class Totals:
    """All that one stage did of one kind, summed up."""

    count: int = 0
    """Micro-batches."""
    seconds: float = 0.0
    """Sum over them."""
    first: float = 0.0
    """Seconds of the first; where streams followed one another, of each one's first together."""
    last: float = 0.0
    """The same of the last."""
    latest: float = 0.0
    """Seconds of the one added last."""

    def add(self, seconds: float, begins: bool = False) -> None:
        """Count one more; `begins` where it is the first of a stream."""
        if begins or self.count == 0:
            self.first += seconds
        else:
            self.last -= self.latest
        self.count += 1
        self.seconds += seconds
        self.last += seconds
        self.latest = seconds

    def joined(self, later: Totals) -> Totals:
        """These, and those of streams that followed."""
        return Totals(
            self.count + later.count,
            self.seconds + later.seconds,
            self.first + later.first,
            self.last + later.last,
            later.latest,
        )


class Tracer:
    """Keeps the time of one stage: totals always, every single span only when asked to.

    Args:
        stage: the stage, 0-based.
        keeps_spans: whether to keep every span, which takes memory for every micro-batch.
        clock: what tells the time; None for the host's.
        enter: receives what the stage begins, with which micro-batch and, if known, samples.
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
        """Seconds between one record and the next, but before those of a stream's first
        micro-batch: between streams a stage waits, and this is not what it does."""
        self.spans: list[Span] = []
        self._end: float | None = None
        self._pending: deque[tuple[Kind, int, Mark, Mark]] = deque()
        self._beside: deque[tuple[Kind, int, Mark, Mark]] = deque()

    def record(self, kind: Kind, microbatch: int, begin: Mark, end: Mark) -> None:
        """Keep one span, in the order of time; marks of `clock`."""
        seconds = self.clock.seconds
        if not self._pending and not self._beside:  # a host's marks are seconds already
            first, last = seconds(begin), seconds(end)
            if first is not None and last is not None:
                self._count(kind, microbatch, first, last)
                return
        self._pending.append((kind, microbatch, begin, end))
        self._settle()

    def record_beside(self, kind: Kind, microbatch: int, begin: Mark, end: Mark) -> None:
        """Keep a span of something that went on beside what the stage did; it is in no sum."""
        self._beside.append((kind, microbatch, begin, end))
        self._settle()

    def finish(self) -> None:
        """Wait until all that was recorded has come to pass; only then are the sums complete."""
        while self._pending or self._beside:
            self._settle()
            if self._pending or self._beside:
                time.sleep(_LOOK_SECONDS)

    def add_totals(self, other: Tracer) -> None:
        """Take over the sums of another tracer of the same rank, whose thread has ended."""
        other.finish()
        for kind, totals in other.totals.items():
            if totals.count:
                self.totals[kind] = self.totals[kind].joined(totals)
        self.spans += other.spans

    def _settle(self) -> None:
        """Count what has come to pass: a mark is coarse once it is long ago, and holds an event."""
        self._take(self._pending, self._count)
        if self._beside:
            self._take(self._beside, self._keep_beside)

    def _take(
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

    def _keep_beside(self, kind: Kind, microbatch: int, begin: float, end: float) -> None:
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
        """Time the body of a ``with`` statement, also when it raises."""
        self.enter(kind, microbatch)
        begin = self.clock.now()
        try:
            yield
        finally:
            self.record(kind, microbatch, begin, self.clock.now())


def paths(work: Sequence[Totals]) -> list[float]:
    """For each stage the seconds that a run takes because of it, however fast the others.

    That is the first micro-batch on its way to the stage, all of the stage's own work, and the last
    micro-batch on its way out.

    Args:
        work: what each stage did, in the order of the pipeline.
    """
    firsts = [0.0, *accumulate(each.first for each in work)]
    lasts = [0.0, *accumulate(each.last for each in reversed(work))][::-1]
    return [firsts[stage] + each.seconds + lasts[stage + 1] for stage, each in enumerate(work)]


def bound(compute: Sequence[Totals]) -> float:
    """Seconds that a perfect pipeline would take.

    With equal micro-batches this is sum(t) + (M - 1) max(t) over the stage times t. Where
    micro-batches differ it is the longest of the stages' `paths`. Streams that followed one another
    are taken as they were: each ended before the next began.

    Args:
        compute: the compute totals of each stage, in the order of the pipeline.
    """
    return max(paths(compute), default=0.0)


def write_chrome_trace(path: Path, spans: Iterable[Span]) -> None:
    """Write spans for chrome://tracing or Perfetto; one row a stage, and one for what went on
    beside it, where there is any.

    Args:
        path: the file; it appears, or replaces another, when all of it is written.
        spans: of all stages, on one clock.

    Raises:
        OSError: the file system refuses.
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
