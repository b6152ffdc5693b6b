"""Totals of spans, the bound of a run, and the timeline file."""

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
def test_the_bound_of_equal_micro_batches(times: list[float], count: int) -> None:
    expected = sum(times) + (count - 1) * max(times)
    assert bound([totals([time] * count) for time in times]) == pytest.approx(expected)


def test_the_bound_of_unequal_micro_batches() -> None:
    # Stage 1 has most work. It starts after the first micro-batch of stage 0; after its last one,
    # stage 2 computes once more.
    stages = [totals([1.0, 5.0, 1.0]), totals([4.0, 4.0, 4.0]), totals([2.0, 0.5, 2.0])]
    assert bound(stages) == pytest.approx(1.0 + 12.0 + 2.0)


def test_the_bound_of_no_stages_is_zero() -> None:
    assert bound([]) == 0.0


def test_a_tracer_stores_spans_only_on_request() -> None:
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


def test_the_bound_of_consecutive_streams() -> None:
    one = [totals([1.0, 2.0, 3.0]), totals([2.0, 2.0, 4.0])]
    two = [totals([1.0, 2.0, 3.0]), totals([2.0, 2.0, 4.0])]
    for stage in two:
        for at, seconds in enumerate([5.0, 6.0]):
            stage.add(seconds, begins=at == 0)
    assert (two[0].first, two[0].last, two[0].latest) == (1.0 + 5.0, 3.0 + 6.0, 6.0)
    assert bound(two) == bound(one) + 11.0 + 6.0


def test_gaps_between_streams_do_not_count() -> None:
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


def test_a_span_is_recorded_if_the_body_fails() -> None:
    tracer = Tracer(0)
    with pytest.raises(ValueError, match="no"), tracer.span("sink", 3):
        raise ValueError("no")
    assert tracer.totals["sink"].count == 1


def test_the_format_of_the_timeline_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("of an earlier run")
    write_chrome_trace(path, [Span(1, "send", 4, 0.5, 0.75), Span(1, "send", 4, 0.6, 0.8, True)])
    event, transfer, *names = json.loads(path.read_text())["traceEvents"]
    assert (event["ph"], event["tid"], event["ts"], event["dur"]) == ("X", 1, 0.5e6, 0.25e6)
    assert event["name"] == "send 4"
    assert (transfer["tid"], transfer["pid"] != event["pid"]) == (1, True)
    assert [each["args"]["name"] for each in names] == ["stage 1", "stage 1, transfers"]
    assert [(each["pid"], each["tid"]) for each in names] == [(0, 1), (1, 1)]
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json"]


class Later:
    """A clock whose marks are reached once `reached` is at least as large."""

    reached = 0.0

    def now(self) -> float:
        return self.reached

    def seconds(self, mark: float) -> float | None:
        return mark if mark <= self.reached else None


def test_overlapping_spans_are_stored_as_soon_as_their_marks_are_reached() -> None:
    """Old events of a GPU have a lower resolution, and each takes memory."""
    clock = Later()
    tracer = Tracer(0, clock=clock)
    for index in range(4):
        tracer.record_overlapping("send", index, index, index + 1)
        assert [span.microbatch for span in tracer.spans] == list(range(int(clock.reached)))
        clock.reached = index
    clock.reached = 9
    tracer.finish()
    assert [(span.begin, span.end) for span in tracer.spans] == [(k, k + 1) for k in range(4)]
