"""`deadline` aborts the job if its body takes too long, and only then."""

from __future__ import annotations

import threading

import pytest

from pipepar.comm.group.timeout import deadline

LONG = 600.0


class FakeWorld:
    """A world that records reports instead of ending the job."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.aborted = threading.Event()

    def abort(self, report: str) -> None:
        self.reports.append(report)
        self.aborted.set()


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld()


def test_a_timeout_aborts_the_job_with_the_message(world: FakeWorld) -> None:
    with deadline(world.abort, 0.05, "rank 1 did not connect; check that it runs"):
        assert world.aborted.wait(10)
    assert world.reports == ["error: rank 1 did not connect; check that it runs"]


@pytest.mark.parametrize("fails", [False, True])
def test_the_timer_stops_after_the_body(world: FakeWorld, fails: bool) -> None:
    before = set(threading.enumerate())
    timers: set[threading.Thread] = set()
    try:
        with deadline(world.abort, LONG, "too late"):
            timers = set(threading.enumerate()) - before
            assert all(thread.daemon for thread in timers)  # the process may exit meanwhile
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert len(timers) == 1
    for thread in timers:
        thread.join(10)
        assert not thread.is_alive()
    assert not world.reports
