"""Predicted timelines, compared with values by hand, with the bound, and with general laws."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipepar.plan.plan import Edge
from pipepar.plan.simulate import Timeline, simulate
from pipepar.trace import Kind, write_chrome_trace


def chain(stages: int, seconds: float = 0.0) -> dict[Edge, float]:
    return {(stage, stage + 1): seconds for stage in range(stages - 1)}


def spans_of(timeline: Timeline, stage: int, kind: Kind) -> list[tuple[float, float]]:
    return [(s.begin, s.end) for s in timeline.spans if (s.stage, s.kind) == (stage, kind)]


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("times", [[3.0], [1.0, 2.0, 3.0], [3.0, 1.0, 1.0, 2.0], [2.0] * 5])
def test_free_links_reach_the_bound(times: list[float], count: int, depth: int) -> None:
    timeline = simulate(times, chain(len(times)), count, depth)
    assert timeline.seconds == sum(times) + (count - 1) * max(times)
    assert timeline.bound == timeline.seconds


def test_a_pipeline_fills_and_drains() -> None:
    timeline = simulate([1.0, 1.0, 1.0], chain(3), 4)
    assert spans_of(timeline, 0, "compute") == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert spans_of(timeline, 1, "compute") == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert spans_of(timeline, 2, "compute") == [(2, 3), (3, 4), (4, 5), (5, 6)]
    assert (timeline.fill, timeline.drain, timeline.seconds) == (2, 2, 6)


def test_a_slow_link_limits_the_speed() -> None:
    # One micro-batch every 4 s; the link carries one at a time.
    timeline = simulate([1.0, 2.0], {(0, 1): 4.0}, 3)
    assert spans_of(timeline, 1, "receive") == [(0, 5), (7, 9), (11, 13)]
    assert spans_of(timeline, 1, "compute") == [(5, 7), (9, 11), (13, 15)]
    assert (timeline.bound, timeline.seconds) == (7, 15)


def test_a_fast_link_only_delays() -> None:
    times = [1.0, 2.0, 1.0]
    timeline = simulate(times, chain(3, 0.5), 10)
    assert timeline.seconds == sum(times) + 9 * max(times) + 2 * 0.5


def test_a_slow_stage_blocks_the_stage_before_it() -> None:
    # Depth 1: stage 1 computes one micro-batch, one waits at each end, and then stage 0 waits.
    timeline = simulate([1.0, 10.0], chain(2), 5, depth=1)
    assert spans_of(timeline, 1, "receive") == [(0, 1), *((t, t) for t in (11, 21, 31, 41))]
    assert spans_of(timeline, 0, "send") == [(1, 1), (2, 2), (3, 3), (4, 11), (12, 21)]
    assert spans_of(timeline, 0, "compute")[4] == (11, 12)


def test_depth_is_the_number_of_micro_batches_that_wait_at_each_end() -> None:
    for depth in (1, 2, 3):
        sends = spans_of(simulate([1.0, 1000.0], chain(2), 20, depth), 0, "send")
        free = list(itertools.takewhile(lambda span: span[0] == span[1], sends))
        assert len(free) == 1 + 2 * depth


def test_a_skip_arrives_before_it_is_needed() -> None:
    edges = chain(3, 0.5) | {(0, 2): 1.0}
    timeline = simulate([1.0, 1.0, 1.0], edges, 4)
    assert timeline.seconds == simulate([1.0, 1.0, 1.0], chain(3, 0.5), 4).seconds


def test_a_slow_skip_delays_its_consumer() -> None:
    timeline = simulate([1.0, 1.0, 1.0], chain(3) | {(0, 2): 5.0}, 2)
    assert spans_of(timeline, 2, "receive") == [(0, 6), (7, 11)]


def test_the_depth_of_a_skip_grows_with_its_length() -> None:
    # A value that skips six stages waits at either end while these stages compute.
    edges = chain(8) | {(0, 7): 0.0}
    timeline = simulate([1.0] * 8, edges, 20, depth=1)
    assert timeline.seconds == timeline.bound


def test_a_predicted_timeline_is_written_like_a_measured_one(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_chrome_trace(path, simulate([1.0, 2.0], chain(2), 2).spans)
    events = json.loads(path.read_text())["traceEvents"]
    names = [event["name"] for event in events]
    assert names[:4] == ["compute 0", "send 0", "receive 0", "compute 0"]


@pytest.mark.parametrize(
    ("compute", "edges", "count", "depth"),
    [
        ([], {}, 1, 1),
        ([1.0], {}, 0, 1),
        ([1.0, 1.0], {(0, 1): 0.0}, 1, 0),
        ([1.0, 1.0], {(1, 0): 0.0}, 1, 1),
        ([1.0, 1.0], {(0, 2): 0.0}, 1, 1),
    ],
)
def test_invalid_arguments_are_refused(
    compute: list[float], edges: dict[Edge, float], count: int, depth: int
) -> None:
    with pytest.raises(ValueError, match="expected"):
        simulate(compute, edges, count, depth)


# Whole numbers, so that sums and comparisons are exact.
seconds = st.integers(0, 9).map(float)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[float], dict[Edge, float], int]:
    """Draw a chain of stages with skips."""
    times = draw(st.lists(seconds, min_size=1, max_size=5))
    skips = [(a, b) for a, b in itertools.combinations(range(len(times)), 2) if b > a + 1]
    chosen = draw(st.sets(st.sampled_from(skips))) if skips else set()
    edges = {edge: draw(seconds) for edge in [*chain(len(times)), *sorted(chosen)]}
    return times, edges, draw(st.integers(1, 12))


@given(pipelines(), st.integers(1, 4))
def test_never_faster_than_the_bound(
    pipeline: tuple[list[float], dict[Edge, float], int], depth: int
) -> None:
    times, edges, count = pipeline
    timeline = simulate(times, edges, count, depth)
    assert timeline.bound == sum(times) + (count - 1) * max(times)
    assert timeline.seconds >= timeline.bound
    for (producer, consumer), transfer in edges.items():
        between = sum(times[: producer + 1]) + sum(times[consumer:])
        assert timeline.seconds >= between + count * transfer


@given(pipelines(), st.integers(1, 4))
def test_more_depth_is_never_slower(
    pipeline: tuple[list[float], dict[Edge, float], int], depth: int
) -> None:
    deeper = simulate(*pipeline, depth + 1).spans
    for span, other in zip(simulate(*pipeline, depth).spans, deeper, strict=True):
        assert (span.stage, span.kind, span.microbatch) == (
            *(other.stage, other.kind, other.microbatch),
        )
        assert other.end <= span.end


@given(pipelines(), st.integers(1, 4))
def test_every_stage_does_one_thing_after_another(
    pipeline: tuple[list[float], dict[Edge, float], int], depth: int
) -> None:
    times, edges, count = pipeline
    timeline = simulate(times, edges, count, depth)
    for stage, time in enumerate(times):
        mine = [span for span in timeline.spans if span.stage == stage]
        assert [s.microbatch for s in mine if s.kind == "compute"] == list(range(count))
        assert all(s.seconds == time for s in mine if s.kind == "compute")
        assert all(before.end == after.begin for before, after in itertools.pairwise(mine))
    for (producer, consumer), transfer in edges.items():
        made, used = (spans_of(timeline, stage, "compute") for stage in (producer, consumer))
        for (_, end), (begin, _) in zip(made, used, strict=True):
            assert begin >= end + transfer
