"""Idle time by cause, compared with values by hand and with simulated timelines."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipepar.plan.plan import Edge
from pipepar.plan.simulate import Timeline, simulate
from pipepar.report.idle import Idle, idle_shares
from pipepar.report.run_record import RunRecord, StageRecord
from pipepar.report.summary import print_summary
from pipepar.trace import Totals, Tracer


def chain(stages: int, seconds: float = 0.0) -> dict[Edge, float]:
    return {(stage, stage + 1): seconds for stage in range(stages - 1)}


def traced(timeline: Timeline, source: float = 0.0, sink: float = 0.0) -> list[Tracer]:
    """Return the records of the stages of a simulated run.

    Args:
        timeline: the run.
        source: seconds of each computation of the first stage that are recorded as reading.
        sink: seconds of each computation of the last stage that are recorded as writing.
    """
    tracers = [Tracer(stage) for stage in range(timeline.stages)]
    for span in timeline.spans:
        tracer, begin, end = tracers[span.stage], span.begin, span.end
        if span.kind == "compute" and span.stage == 0:
            tracer.record("source", span.microbatch, begin, begin := begin + source)
        if span.kind != "compute" or span.stage < timeline.stages - 1:
            tracer.record(span.kind, span.microbatch, begin, end)
            continue
        tracer.record("compute", span.microbatch, begin, end - sink)
        tracer.record("sink", span.microbatch, end - sink, end)
    return tracers


def shares(tracers: Sequence[Tracer], seconds: float, tail: float = 0.0) -> Idle:
    gaps = [tracer.gaps for tracer in tracers]
    return idle_shares([tracer.totals for tracer in tracers], gaps, tail, seconds)


def simulated(
    times: Sequence[float],
    edges: Mapping[Edge, float],
    count: int,
    source: float = 0.0,
    sink: float = 0.0,
) -> tuple[Idle, float]:
    """Return the shares of idle time, and ranks x seconds."""
    own = [*times]
    own[0] += source
    own[-1] += sink
    timeline = simulate(own, edges, count)
    return shares(traced(timeline, source, sink), timeline.seconds), len(own) * timeline.seconds


def test_equal_stages_only_fill_and_drain() -> None:
    idle, whole = simulated([1.0, 1.0, 1.0], chain(3), 4)
    assert whole == 18
    assert astuple(idle) == (6 / 18, 0, 0, 0, 0, 0)


def test_a_lighter_stage_waits_for_the_busiest() -> None:
    # In 11 s stage 0 computes for 5 s and drains for 2 s, stage 1 computes for 10 s and fills 1 s.
    idle, whole = simulated([1.0, 2.0], chain(2), 5)
    assert whole == 22
    assert astuple(idle) == pytest.approx((3 / 22, 4 / 22, 0, 0, 0, 0))


def test_a_slow_link_is_transfer() -> None:
    # 15 s instead of 7: see test_simulate.
    idle, whole = simulated([1.0, 2.0], {(0, 1): 4.0}, 3)
    assert whole == 30
    assert astuple(idle) == pytest.approx((3 / 30, 2 / 30, 16 / 30, 0, 0, 0))


def test_a_slow_source_costs_every_rank() -> None:
    # Reading takes 2 s for each of 4 micro-batches, and rank 1 waits as long.
    idle, whole = simulated([1.0, 1.0], chain(2), 4, source=2.0)
    assert whole == 26
    assert idle.source == pytest.approx(2 * (4 * 2.0) / 26)
    assert (idle.imbalance, idle.sink) == (0, 0)


def test_reading_instead_of_waiting_counts_as_source() -> None:
    # For each micro-batch, rank 0 computes for 1 s, reads for 1 s and waits for 2 s.
    idle, whole = simulated([1.0, 4.0], chain(2), 10, source=1.0)
    free, _ = simulated([1.0, 4.0], chain(2), 10)
    assert idle.source == pytest.approx((10 * 1.0 + 1.0) / whole)
    assert idle.imbalance * whole == pytest.approx(free.imbalance * 82 - 9.0)


def test_a_slow_sink_costs_every_rank() -> None:
    idle, whole = simulated([1.0, 1.0], chain(2), 4, sink=2.0)
    assert idle.sink == pytest.approx(2 * (4 * 2.0) / whole)
    assert (idle.imbalance, idle.source, idle.transfer) == (0, 0, 0)


def test_a_single_rank_only_has_source_sink_and_other() -> None:
    tracer = Tracer(0)
    for index in range(3):
        begin = 10.0 * index
        tracer.record("source", index, begin, begin + 1)
        tracer.record("compute", index, begin + 1, begin + 6)
        tracer.record("sink", index, begin + 6, begin + 8)
    idle = shares([tracer], seconds=30.0, tail=2.0)
    assert astuple(idle) == pytest.approx((0, 0, 0, 3 / 30, 6 / 30, 6 / 30))


def test_unrecorded_time_of_the_busiest_stage_is_other() -> None:
    # Stage 1 loses 1 s before every micro-batch except the first, and stage 0 waits as long.
    tracers = [Tracer(0), Tracer(1)]
    for index in range(4):
        tracers[0].record("compute", index, index, index + 1.0)
        tracers[1].record("receive", index, 4.0 * index, 4.0 * index + (index == 0))
        begin = 4.0 * index + (index == 0)
        tracers[1].record("compute", index, begin, 4.0 * index + 3 + (index == 0))
    idle = shares(tracers, seconds=15.0)
    assert tracers[1].gaps == 2.0
    assert idle.other == pytest.approx(2 * 2.0 / 30)


def test_unrecorded_time_within_the_slack_is_not_other() -> None:
    tracers = traced(simulate([1.0, 3.0], chain(2), 10))
    tracers[0].gaps = 5.0
    assert shares(tracers, 31.0).other == 0.0


def test_each_separate_call_fills_and_drains() -> None:
    tracers = [Tracer(stage) for stage in range(3)]
    now = 0.0
    for _ in range(5):
        for tracer in tracers:
            if tracer.stage:
                tracer.record("receive", 0, now - 1, now)
            tracer.record("compute", 0, now, now + 1)
            now += 1
    assert astuple(shares(tracers, now)) == pytest.approx((2 / 3, 0, 0, 0, 0, 0))


def test_a_run_time_below_the_work_is_accepted() -> None:
    idle = shares(traced(simulate([1.0, 1.0], chain(2), 4)), seconds=4.9)
    assert sum(astuple(idle)) == pytest.approx(1 - 8 / 10)


def test_a_run_without_work_has_no_idle_time() -> None:
    assert astuple(shares([Tracer(0), Tracer(1)], 0.0)) == (0,) * 6


times = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=5)


@given(times, st.integers(1, 12), st.integers(0, 5), st.integers(0, 5), st.integers(0, 9))
def test_all_time_is_accounted_for(
    compute: list[float], count: int, source: float, sink: float, transfer: float
) -> None:
    idle, whole = simulated(compute, chain(len(compute), transfer), count, source, sink)
    assert min(astuple(idle)) >= 0
    assert whole * sum(astuple(idle)) == pytest.approx(whole - count * sum(compute))
    own = [*compute]
    own[0] += source
    own[-1] += sink
    free = simulate(own, chain(len(own)), count).seconds
    assert whole * idle.transfer == pytest.approx(whole - len(own) * free)
    assert idle.other == 0
    assert whole * idle.source >= count * source - 1e-9
    assert whole * idle.sink >= count * sink - 1e-9


def summary_of(times: Sequence[float], edges: Mapping[Edge, float], count: int) -> RunRecord:
    timeline = simulate(times, edges, count)
    stages = [
        StageRecord(
            rank=tracer.stage,
            host="node",
            threads=1,
            weight_bytes=0,
            peak_bytes=0,
            totals=tracer.totals,
            gaps=tracer.gaps,
            seconds=timeline.seconds,
        )
        for tracer in traced(timeline)
    ]
    return RunRecord(count, timeline.seconds, tuple(stages))


def printed(summary: RunRecord) -> str:
    text = io.StringIO()
    print_summary(summary, Console(width=200, file=text))
    return text.getvalue()


@pytest.mark.parametrize(
    ("compute", "transfer", "count", "share", "remedy"),
    [
        ([1.0, 1.0], 0.0, 3, "fill 25%", "fill is large: let more micro-batches flow"),
        ([1.0, 2.0], 0.0, 50, "imbalance 24%", "imbalance is large: try another number of ranks"),
        ([1.0, 1.0], 3.0, 50, "transfer 66%", "transfer is large: try larger micro-batches"),
        ([1.0, 1.0], 0.0, 50, "imbalance 0%", ""),
    ],
)
def test_the_summary_has_idle_shares_and_a_remedy(
    compute: list[float], transfer: float, count: int, share: str, remedy: str
) -> None:
    text = printed(summary_of(compute, chain(len(compute), transfer), count))
    (line,) = [line for line in text.splitlines() if line.startswith("idle: ")]
    assert share in line
    assert (remedy or "idle: ") in text
    assert ("is large" in text) == bool(remedy)


def test_the_busiest_stage_is_named() -> None:
    text = printed(summary_of([1.0, 2.0, 1.0], chain(3), 10))
    assert "busiest: stage 1 on node, at work 91% of the time" in text
    last = summary_of([1.0, 1.0], chain(2), 10)
    last.stages[1].totals["sink"] = Totals(10, 5.0, 0.5, 0.5)
    assert last.busiest.rank == 1


def test_a_run_without_samples_has_no_idle_time() -> None:
    summary = summary_of([1.0], {}, 1)
    assert "idle" not in printed(RunRecord(0, 0.1, summary.stages))
