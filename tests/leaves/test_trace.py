"""Totals, the bound, and the timeline file."""

import json
from pathlib import Path

import pytest

from pipepar.trace import Span, Totals, Tracer, bound, write_chrome_trace


def totals(seconds: list[float]) -> Totals:
    result = Totals()
    for each in seconds:
        result.add(each)
    return result


@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("times", [[3.0], [1.0, 2.0, 3.0], [3.0, 1.0, 1.0, 2.0]])
def test_the_bound_of_equal_microbatches(times: list[float], count: int) -> None:
    expected = sum(times) + (count - 1) * max(times)
    assert bound([totals([time] * count) for time in times]) == pytest.approx(expected)


def test_the_bound_of_unequal_microbatches() -> None:
    # Stage 1 is the busiest: it starts after the first of stage 0, and stage 2 ends with its last.
    stages = [totals([1.0, 5.0, 1.0]), totals([4.0, 4.0, 4.0]), totals([2.0, 0.5, 2.0])]
    assert bound(stages) == pytest.approx(1.0 + 12.0 + 2.0)


def test_nothing_is_bound_by_nothing() -> None:
    assert bound([]) == 0.0


def test_a_tracer_sums_up_and_keeps_spans_only_when_asked() -> None:
    for keep in (False, True):
        tracer = Tracer(2, keep)
        tracer.record("compute", 0, 1.0, 1.5)
        tracer.record("compute", 1, 2.0, 2.25)
        compute = tracer.totals["compute"]
        assert (compute.count, compute.first, compute.last) == (2, 0.5, 0.25)
        assert compute.seconds == pytest.approx(0.75)
        assert tracer.spans == (
            [Span(2, "compute", 0, 1.0, 1.5), Span(2, "compute", 1, 2.0, 2.25)] if keep else []
        )


def test_streams_that_follow_one_another_are_each_filled_and_drained() -> None:
    one = [totals([1.0, 2.0, 3.0]), totals([2.0, 2.0, 4.0])]
    two = [totals([1.0, 2.0, 3.0]), totals([2.0, 2.0, 4.0])]
    for stage in two:
        for at, seconds in enumerate([5.0, 6.0]):
            stage.add(seconds, begins=at == 0)
    assert (two[0].first, two[0].last, two[0].latest) == (1.0 + 5.0, 3.0 + 6.0, 6.0)
    assert bound(two) == bound(one) + 11.0 + 6.0


def test_gaps_are_within_a_stream() -> None:
    tracer = Tracer(0)
    for kind, index, begin, end in [
        ("receive", 0, 1.0, 2.0),
        ("compute", 0, 2.0, 3.0),
        ("receive", 1, 3.5, 4.0),
        ("compute", 1, 4.25, 5.0),
        ("receive", 0, 9.0, 10.0),
    ]:
        tracer.record(kind, index, begin, end)  # type: ignore[arg-type]
    assert tracer.gaps == 0.5 + 0.25


def test_a_span_is_kept_when_the_body_fails() -> None:
    tracer = Tracer(0)
    with pytest.raises(ValueError, match="no"), tracer.span("sink", 3):
        raise ValueError("no")
    assert tracer.totals["sink"].count == 1


def test_the_timeline_file_is_what_viewers_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("of an earlier run")
    write_chrome_trace(path, [Span(1, "send", 4, 0.5, 0.75), Span(1, "send", 4, 0.6, 0.8, True)])
    event, beside, *names = json.loads(path.read_text())["traceEvents"]
    assert (event["ph"], event["tid"], event["ts"], event["dur"]) == ("X", 1, 0.5e6, 0.25e6)
    assert event["name"] == "send 4"
    assert (beside["tid"], beside["pid"] != event["pid"]) == (1, True)
    assert [each["args"]["name"] for each in names] == ["stage 1", "stage 1, transfers"]
    assert [(each["pid"], each["tid"]) for each in names] == [(0, 1), (1, 1)]
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]


class Later:
    """A clock whose marks are moments that come when `come` says so."""

    come = 0.0

    def now(self) -> float:
        return self.come

    def seconds(self, mark: float) -> float | None:
        return mark if mark <= self.come else None


def test_what_went_on_beside_is_kept_as_it_comes_to_pass() -> None:
    """A GPU's events are told apart less well the longer ago they were, and each takes memory."""
    clock = Later()
    tracer = Tracer(0, clock=clock)
    for index in range(4):
        tracer.record_beside("send", index, index, index + 1)
        assert [span.microbatch for span in tracer.spans] == list(range(int(clock.come)))
        clock.come = index
    clock.come = 9
    tracer.finish()
    assert [(span.begin, span.end) for span in tracer.spans] == [(k, k + 1) for k in range(4)]
