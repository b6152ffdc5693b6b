"""The displayed progress of a job: the samples of this run only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipepar.comm.world import World
from pipepar.jobs.run import Job, run_job
from pipepar.progress import NO_DISPLAY
from pipepar.report.run_record import RunRecord
from tests.helpers.jobs.command import MLP, after
from tests.helpers.jobs.in_process import run


class Bars:
    """Records for each progress bar its number of samples and the steps of its progress."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, list[int]]] = []
        self.notes: list[str] = []

    @contextmanager
    def bar(self, total: int) -> Iterator[Callable[[int], None]]:
        steps = list[int]()
        self.samples.append((total, steps))
        yield steps.append

    def run(self, job: Job, micro_batches: int = 10_000) -> RunRecord:
        display = replace(NO_DISPLAY, samples=self.bar, note=self.notes.append)
        return run_job(World.start(), job, display, after(micro_batches))


@pytest.fixture
def job(rows: Path, tmp_path: Path) -> Job:
    return Job(MLP, rows, tmp_path / "out.npy", micro_batch=2)


@pytest.fixture
def bars() -> Bars:
    return Bars()


def test_a_whole_job(job: Job, bars: Bars) -> None:
    assert bars.run(job).samples == 11
    assert bars.samples == [(11, [2, 2, 2, 2, 2, 1])]
    assert not bars.notes


def test_a_stopped_job(job: Job, bars: Bars) -> None:
    assert bars.run(job, 3).samples == 6
    assert bars.samples == [(11, [2, 2, 2])]


def test_a_resumed_job_counts_only_its_own_samples(job: Job, bars: Bars) -> None:
    run(job, 3)
    summary = bars.run(replace(job, resume=True))
    assert (summary.samples, summary.stopped) == (5, None)
    assert bars.samples == [(5, [2, 2, 1])]
    assert bars.notes == ["resuming: 6 of 11 samples are done already"]


def test_a_job_that_is_stopped_twice(job: Job, bars: Bars) -> None:
    run(job, 3)
    stopped = bars.run(replace(job, resume=True), 1).stopped
    assert bars.samples == [(5, [2])]
    assert stopped is not None
    assert (stopped.done, stopped.count) == (8, 11)


def test_samples_that_are_tried_alone(job: Job, bars: Bars) -> None:
    """They have a bar of their own, in addition to the first."""
    values = np.ones((11, 4), np.float32)
    values[[3, 8]] = 1e6
    np.save(job.input, values)
    job = replace(job, model="tests.helpers.factories:picky_last", on_error="skip")
    summary = bars.run(job)
    assert (summary.samples, summary.failed) == (11, 2)
    assert bars.samples == [(11, [2, 2, 2, 2, 2, 1]), (4, [1, 1, 1, 1])]
    assert bars.notes == ["4 samples were in micro-batches that failed; each is tried alone"]


@pytest.mark.parametrize(("stop", "left"), [(6, 4), (8, 3), (10, 1)])
def test_a_resumed_job_tries_the_remaining_samples_alone(
    job: Job, bars: Bars, stop: int, left: int
) -> None:
    """A job checks for a stop before each micro-batch, and once before the second stream."""
    values = np.ones((11, 4), np.float32)
    values[[3, 8]] = 1e6
    np.save(job.input, values)
    job = replace(job, model="tests.helpers.factories:picky_last", on_error="skip")
    assert run(job, stop).stopped
    summary = bars.run(replace(job, resume=True))
    assert summary.failed == 2
    assert bars.samples == [(0, []), (left, [1] * left)]
