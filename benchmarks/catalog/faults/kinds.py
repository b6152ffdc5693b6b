"""The kinds of disturbance, and the expected end of the disturbed job."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from benchmarks.catalog.faults.job import TIMEOUT, Job
from benchmarks.catalog.faults.workspace import SILENCE, JobFolder, UndisturbedRun
from tests.helpers.cluster.hosts import set_link
from tests.helpers.cluster.waiting import until

POLL: Final = 0.002
"""Seconds between two checks of a job that streams."""
_MARGIN: Final = 3.0  # after the silence timeout: to collect stacks, and to end
_STOPPED: Final = 75  # exit status of an orderly stop


@dataclass(frozen=True, slots=True)
class Trial:
    """A job that is to be disturbed."""

    draw: random.Random
    """The source of all random decisions."""
    files: JobFolder
    """The files of the job."""
    undisturbed: UndisturbedRun
    """The result without a disturbance."""
    job: Job
    """The processes."""
    ranks: dict[int, int] = field(default_factory=dict)
    """The process ids of the ranks, once the job streams."""

    def rows(self) -> float:
        """Return the share of the rows that are written already."""
        try:
            return self.files.part.stat().st_size / self.undisturbed.size
        except FileNotFoundError:
            return 1.0 if self.job.status is not None else 0.0

    def signal_a_rank(self, number: signal.Signals) -> int:
        """Send a signal to a random rank, and return the rank."""
        rank = self.draw.randrange(self.files.spec.ranks)
        os.kill(self.ranks[rank], number)
        return rank


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected end of a disturbed job."""

    named: int | None
    """The rank that the output must name; None if it must name none."""
    status: int | None = None
    """The exit status; None for any except 0."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of disturbance."""

    disturb: Callable[[Trial], Expected]
    """Disturbs the job."""
    limit: float = 5.0
    """Seconds in which all ranks must end."""
    latest: float = 0.95
    """The share of the rows up to which the disturbance begins."""
    needs_root: bool = False
    """Whether it needs root."""
    may_miss: bool = False
    """Whether a job that is nearly done may complete in spite of it."""


def _kill(trial: Trial) -> Expected:
    return Expected(trial.signal_a_rank(signal.SIGKILL))


def _stop(trial: Trial) -> Expected:
    return Expected(trial.signal_a_rank(signal.SIGSTOP))


def _terminate(trial: Trial) -> Expected:
    if trial.draw.random() < 0.5:
        os.kill(trial.job.launcher, signal.SIGTERM)
        return Expected(None)
    trial.signal_a_rank(signal.SIGTERM)
    return Expected(None, _STOPPED)


def _raise(trial: Trial) -> Expected:
    rank = trial.draw.randrange(trial.files.spec.ranks)
    trial.files.failure_file(rank).touch()
    return Expected(rank)


def _fill_disk(trial: Trial) -> Expected:
    """Wait until the output's file system, which is too small, is full."""
    folder, job = trial.files.output.parent, trial.job
    until(lambda: not os.statvfs(folder).f_bavail or job.status is not None, TIMEOUT, POLL)
    return Expected(trial.files.spec.ranks - 1)


def _cut_input(trial: Trial) -> Expected:
    """Truncate the input at random, at most a little ahead of the position of the reader."""
    size = trial.files.input.stat().st_size
    share = trial.draw.uniform(0, min(1, trial.rows() + 0.1))
    os.truncate(trial.files.input, int(size * share))
    return Expected(0)


def _cut_link(trial: Trial) -> Expected:
    assert trial.files.hosts is not None
    set_link(trial.draw.choice(trial.files.hosts.names), "down")
    return Expected(trial.files.spec.ranks - 1)


KINDS: Final = {
    "killed-rank": Kind(_kill),
    "stopped-rank": Kind(_stop, limit=SILENCE + _MARGIN),
    "sigterm": Kind(_terminate, may_miss=True),
    "exception": Kind(_raise, may_miss=True),
    "full-disk": Kind(_fill_disk, needs_root=True),
    "cut-input": Kind(_cut_input, latest=0.85, may_miss=True),
    "cut-link": Kind(_cut_link, limit=SILENCE + _MARGIN, needs_root=True),
}
