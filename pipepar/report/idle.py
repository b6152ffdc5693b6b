"""Where a run's idle time went: every second of every rank that was not computing, by its cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipepar.trace import Kind, Totals, paths


@dataclass(frozen=True, slots=True)
class Idle:
    """Shares of (ranks x seconds), 0 to 1; with the share that was computing they add up to 1.

    A rank cannot see why it waits. So the run is compared with perfect pipelines, in which nothing
    but the work that was measured takes time, and which `trace.paths` knows all about: one that
    only computes, and one that also reads the input and writes the output.
    """

    fill: float
    """Waiting for the first micro-batch and after the last, as in a pipeline that only computes."""
    imbalance: float
    """Waiting, in either perfect pipeline, because another stage has more to compute."""
    transfer: float
    """What the run took longer than the perfect pipeline, if nothing below explains it: hops, ranks
    that began late, and uneven micro-batches that the channels' depth does not level out."""
    source: float
    """Reading and preparing the input on rank 0, and the waiting that this causes elsewhere."""
    sink: float
    """Writing results on the last rank, and the waiting that this causes elsewhere. What both cause
    is shared out in the ratio of what each would cause alone."""
    other: float
    """What the run took longer because of time that no rank records: on the stage where it delays
    the most, and on the last rank when its records end, as for completing the output file."""


def idle_shares(
    totals: Sequence[Mapping[Kind, Totals]], gaps: Sequence[float], tail: float, seconds: float
) -> Idle:
    """Say where idle time went.

    Args:
        totals: what each stage recorded, in the order of the pipeline; one or more.
        gaps: seconds of each stage between its records; see `Tracer.gaps`.
        tail: seconds of the last stage that are in no record and no gap.
        seconds: wall time of the run.
    """
    source, sink = totals[0]["source"], totals[-1]["sink"]
    computing = _Perfect([each["compute"] for each in totals])
    reading, writing = computing.with_more(0, source), computing.with_more(-1, sink)
    working = reading.with_more(-1, sink)
    by_source, by_sink, by_both = (
        max(each.waiting - computing.fill - computing.shared_slack(each), 0.0)
        for each in (reading, writing, working)
    )
    share = by_source / ((by_source + by_sink) or 1.0)

    excess = max(seconds - working.seconds, 0.0)
    late = max(gap - slack for gap, slack in zip(gaps, working.slack, strict=True))
    other = min(max(late, 0.0) + max(tail, 0.0), excess)

    ranks = len(totals)
    whole = ranks * (working.seconds + excess) or 1.0
    return Idle(
        fill=computing.fill / whole,
        imbalance=computing.shared_slack(working) / whole,
        transfer=ranks * (excess - other) / whole,
        source=(source.seconds + share * by_both) / whole,
        sink=(sink.seconds + (1 - share) * by_both) / whole,
        other=ranks * other / whole,
    )


class _Perfect:
    """A pipeline in which nothing but the stages' work takes time."""

    def __init__(self, work: Sequence[Totals]) -> None:
        lengths = paths(work)
        self._work = work
        self.seconds = max(lengths)
        self.slack = [self.seconds - length for length in lengths]
        """Seconds that each stage could work more, and the run would take no longer."""
        self.waiting = len(work) * self.seconds - sum(each.seconds for each in work)
        """Seconds that ranks do not work, all together."""

    @property
    def fill(self) -> float:
        """Waiting before the first micro-batch and after the last, all together."""
        return max(self.waiting - sum(self.slack), 0.0)

    def shared_slack(self, other: _Perfect) -> float:
        """Slack of all stages, as much of it as there is in both pipelines."""
        return sum(map(min, self.slack, other.slack))

    def with_more(self, stage: int, more: Totals) -> _Perfect:
        """The same with more work on one stage for each micro-batch."""
        work = list(self._work)
        own = work[stage]
        work[stage] = replace(
            own,
            seconds=own.seconds + more.seconds,
            first=own.first + more.first,
            last=own.last + more.last,
        )
        return _Perfect(work)
