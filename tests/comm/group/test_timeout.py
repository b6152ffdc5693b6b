"""A bound on waiting: a body that takes too long ends the job, and no other one."""

from __future__ import annotations

import threading

import pytest

from pipepar.comm.group.timeout import deadline

LONG = 600.0


class Ending:
    """In the place of a world: says what the job would have ended with."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.ended = threading.Event()

    def abort(self, report: str) -> None:
        self.reports.append(report)
        self.ended.set()


@pytest.fixture
def world() -> Ending:
    return Ending()


def test_who_waits_too_long_ends_the_job_and_says_for_what(world: Ending) -> None:
    with deadline(world.abort, 0.05, "rank 1 did not come; see that it is alive"):
        assert world.ended.wait(10)
    assert world.reports == ["error: rank 1 did not come; see that it is alive"]


@pytest.mark.parametrize("fails", [False, True])
def test_after_the_body_no_time_runs_any_more(world: Ending, fails: bool) -> None:
    before = set(threading.enumerate())
    waiting: set[threading.Thread] = set()
    try:
        with deadline(world.abort, LONG, "too late"):
            waiting = set(threading.enumerate()) - before
            assert all(thread.daemon for thread in waiting)  # the process may end meanwhile
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert len(waiting) == 1
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
    assert not world.reports
