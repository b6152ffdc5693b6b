"""Where time went: every clock reading of the project ends in a Span.

Measured and predicted timelines are the same Spans, and open in the same viewer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal, get_args

from pipepar.files import write_whole

Kind = Literal["source", "receive", "compute", "send", "sink"]


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


class Tracer:
    """Keeps the time of one stage: totals always, every single span only when asked to. *Local.*

    Args:
        stage: the stage, 0-based.
        keep: whether to keep the spans, which take memory for every micro-batch.
    """

    def __init__(self, stage: int, keep: bool = False) -> None:
        self.stage = stage
        self.totals: dict[Kind, Totals] = {kind: Totals() for kind in get_args(Kind)}
        self.gaps = 0.0
        """Seconds between one record and the next, but before those of a stream's first
        micro-batch: between streams a stage waits, and this is not what it does."""
        self.spans: list[Span] = []
        self._keep = keep
        self._end: float | None = None

    def record(self, kind: Kind, microbatch: int, begin: float, end: float) -> None:
        """Keep one span, in the order of time; seconds of `time.perf_counter`."""
        self.totals[kind].add(end - begin, begins=microbatch == 0)
        if microbatch and self._end is not None:
            self.gaps += begin - self._end
        self._end = end
        if self._keep:
            self.spans.append(Span(self.stage, kind, microbatch, begin, end))

    @contextmanager
    def span(self, kind: Kind, microbatch: int) -> Iterator[None]:
        """Time the body of a ``with`` statement, also when it raises."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.record(kind, microbatch, begin, time.perf_counter())


def paths(work: Sequence[Totals]) -> list[float]:
    """For each stage the seconds that a run takes because of it, however fast the others. *Local.*

    That is the first micro-batch on its way to the stage, all of the stage's own work, and the last
    micro-batch on its way out.

    Args:
        work: what each stage did, in the order of the pipeline.
    """
    firsts = [0.0, *accumulate(each.first for each in work)]
    lasts = [0.0, *accumulate(each.last for each in reversed(work))][::-1]
    return [firsts[stage] + each.seconds + lasts[stage + 1] for stage, each in enumerate(work)]


def bound(compute: Sequence[Totals]) -> float:
    """Seconds that a perfect pipeline would take. *Local.*

    With equal micro-batches this is sum(t) + (M - 1) max(t) over the stage times t. Where
    micro-batches differ it is the longest of the stages' `paths`. Streams that followed one another
    are taken as they were: each ended before the next began.

    Args:
        compute: the compute totals of each stage, in the order of the pipeline.
    """
    return max(paths(compute), default=0.0)


def write_chrome_trace(path: Path, spans: Iterable[Span]) -> None:
    """Write spans for chrome://tracing or Perfetto; one row a stage. *Local.*

    Args:
        path: the file; it appears, or replaces another, when all of it is written.
        spans: of all stages, on one clock.

    Raises:
        OSError: the file system refuses.
    """
    events = [
        {
            "name": f"{span.kind} {span.microbatch}",
            "cat": span.kind,
            "ph": "X",
            "pid": 0,
            "tid": span.stage,
            "ts": span.begin * 1e6,
            "dur": span.seconds * 1e6,
        }
        for span in spans
    ]
    write_whole(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
