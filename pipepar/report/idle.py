"""The idle time of a run by cause: all time of all ranks in which they did not compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipepar.trace import Kind, Totals, paths


@dataclass(frozen=True, slots=True)
class Idle:
    """Shares of (ranks x seconds), 0 to 1; with the share of computing time they add up to 1.

    A rank cannot observe why it waits. So the run is compared with two perfect pipelines, in
    which only the measured work takes time; `trace.paths` computes their times. One of them only
    computes; the other also reads the input and writes the output.
    """

    fill: float
    """Waiting before the first micro-batch and after the last, in a pipeline that only computes."""
    imbalance: float
    """Waiting for slower stages: for each stage, the smaller of its slacks in the two perfect
    pipelines."""
    transfer: float
    """Excess over the perfect pipeline without another cause below: hops, ranks that began late,
    and uneven micro-batches that the depth of the channels does not balance."""
    source: float
    """Reading and preparing the input at the source, and the waiting that this causes elsewhere."""
    sink: float
    """Writing results at the sink, and the waiting that this causes elsewhere. Waiting caused by
    both is divided in the ratio of the waiting that each would cause alone."""
    other: float
    """Excess due to time that no rank records: on the stage where it delays the run the most, and
    on the last rank after its records, for example to complete the output file."""


def idle_shares(
    totals: Sequence[Mapping[Kind, Totals]], gaps: Sequence[float], tail: float, seconds: float
) -> Idle:
    """Return the shares of idle time by cause.

    Args:
        totals: the recorded times of each stage, in the order of the pipeline; one or more stages.
        gaps: seconds of each stage between its records; see `Tracer.gaps`.
        tail: seconds of the last stage that are neither in a record nor in a gap.
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
    """A pipeline in which only the work of the stages takes time."""

    def __init__(self, work: Sequence[Totals]) -> None:
        lengths = paths(work)
        self._work = work
        self.seconds = max(lengths)
        self.slack = [self.seconds - length for length in lengths]
        """For each stage, seconds of additional work that would not make the run longer."""
        self.waiting = len(work) * self.seconds - sum(each.seconds for each in work)
        """Seconds in which ranks do not work, summed over the ranks."""

    @property
    def fill(self) -> float:
        """Seconds before the first micro-batch and after the last, summed over the ranks."""
        return max(self.waiting - sum(self.slack), 0.0)

    def shared_slack(self, other: _Perfect) -> float:
        """Return the smaller of the two slacks of each stage, summed over the stages."""
        return sum(map(min, self.slack, other.slack))

    def with_more(self, stage: int, more: Totals) -> _Perfect:
        """Return a copy with more work on one stage, for every micro-batch."""
        work = list(self._work)
        own = work[stage]
        work[stage] = replace(
            own,
            seconds=own.seconds + more.seconds,
            first=own.first + more.first,
            last=own.last + more.last,
        )
        return _Perfect(work)
