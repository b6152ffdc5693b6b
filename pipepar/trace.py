"""Where time went: every clock reading of the project ends in a Span.

Measured and predicted timelines are the same Spans, and open in the same viewer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


class Tracer:
    """Collects the spans of one stage. *Local.*

    Reading the clock and keeping a tuple costs well under a microsecond, so it is always on; the
    spans themselves are made when somebody asks for them.
    """

    def __init__(self, stage: int) -> None:
        self.stage = stage
        self._records: list[tuple[Kind, int, float, float]] = []

    def record(self, kind: Kind, microbatch: int, begin: float, end: float) -> None:
        """Keep one span; times in seconds of `time.perf_counter`."""
        self._records.append((kind, microbatch, begin, end))

    @contextmanager
    def span(self, kind: Kind, microbatch: int) -> Iterator[None]:
        """Time the body of a ``with`` statement, also when it raises."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.record(kind, microbatch, begin, time.perf_counter())

    def take(self) -> list[Span]:
        """The spans since the last call, in the order recorded."""
        records, self._records = self._records, []
        return [Span(self.stage, *record) for record in records]


def bound(spans: Iterable[Span]) -> float:
    """Seconds that a perfect pipeline would take for the compute spans given. *Local.*

    With equal micro-batches this is sum(t) + (M - 1) max(t) over the stage times t. Where
    micro-batches differ it is the largest, over the stages, of: the first micro-batch on its way
    to the stage, all of the stage's own work, the last micro-batch on its way out.
    """
    stages: dict[int, list[Span]] = {}
    for span in spans:
        if span.kind == "compute":
            stages.setdefault(span.stage, []).append(span)
    if not stages:
        return 0.0
    order = sorted(stages)
    fill, drain = 0.0, sum(stages[stage][-1].seconds for stage in order)
    longest = 0.0
    for stage in order:
        drain -= stages[stage][-1].seconds
        longest = max(longest, fill + sum(span.seconds for span in stages[stage]) + drain)
        fill += stages[stage][0].seconds
    return longest


def write_chrome_trace(path: Path, spans: Iterable[Span]) -> None:
    """Write spans for chrome://tracing or Perfetto; one row a stage. *Local.*"""
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
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")
