"""The ways in which `faults` disturbs a job, and what must come of each."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from benchmarks.faults_job import PATIENCE, Job
from benchmarks.faults_model import SILENCE, Place, Reference
from tests.helpers.cluster.hosts import set_link
from tests.helpers.cluster.waiting import until

LOOK: Final = 0.002
"""Seconds between two looks at a job that streams."""
_SLACK: Final = 3.0  # beyond the limit of silence: to gather stacks, and to end
_STOPPED: Final = 75  # exit status of a job that was told to stop


@dataclass(frozen=True, slots=True)
class Running:
    """A job that is about to be disturbed."""

    some: random.Random
    """Decides what is left to chance."""
    place: Place
    """Where it runs."""
    reference: Reference
    """What it would come to."""
    job: Job
    """The job itself."""
    ranks: dict[int, int] = field(default_factory=dict)
    """Process ids of its ranks, once it streams."""

    def rows(self) -> float:
        """Share of the rows that are written by now."""
        try:
            return self.place.part.stat().st_size / self.reference.size
        except FileNotFoundError:
            return 1.0 if self.job.status is not None else 0.0

    def signal_a_rank(self, number: signal.Signals) -> int:
        """Send a signal to a random rank, which is returned."""
        rank = self.some.randrange(self.place.setting.ranks)
        os.kill(self.ranks[rank], number)
        return rank


@dataclass(frozen=True, slots=True)
class Struck:
    """What was done to a job."""

    named: int | None
    """The rank that must be named; None if none may."""
    status: int | None = None
    """The exit status that must follow; None for any but 0."""


def _kill(one: Running) -> Struck:
    return Struck(one.signal_a_rank(signal.SIGKILL))


def _stop(one: Running) -> Struck:
    return Struck(one.signal_a_rank(signal.SIGSTOP))


def _terminate(one: Running) -> Struck:
    if one.some.random() < 0.5:
        os.kill(one.job.launcher, signal.SIGTERM)
        return Struck(None)
    one.signal_a_rank(signal.SIGTERM)
    return Struck(None, _STOPPED)


def _raise(one: Running) -> Struck:
    rank = one.some.randrange(one.place.setting.ranks)
    one.place.wire(rank).touch()
    return Struck(rank)


def _fill(one: Running) -> Struck:
    """Nothing is to be done: the file system was made too small."""
    folder = one.place.output.parent
    until(lambda: not os.statvfs(folder).f_bavail or one.job.status is not None, PATIENCE, LOOK)
    return Struck(one.place.setting.ranks - 1)


def _cut(one: Running) -> Struck:
    """At random, at most a little ahead of where the input is being read."""
    size = one.place.input.stat().st_size
    os.truncate(one.place.input, int(size * one.some.uniform(0, min(1, one.rows() + 0.1))))
    return Struck(0)


def _unlink(one: Running) -> Struck:
    assert one.place.hosts is not None
    set_link(one.some.choice(one.place.hosts.names), "down")
    return Struck(one.place.setting.ranks - 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to disturb a job."""

    strike: Callable[[Running], Struck]
    """Does it."""
    limit: float = 5.0
    """Seconds after which all ranks must be gone."""
    latest: float = 0.95
    """Share of the rows up to which it comes."""
    needs_root: bool = False
    """Whether nobody else can do it."""
    may_miss: bool = False
    """Whether a job that is nearly done may come to its end all the same."""


KINDS: Final = {
    "killed-rank": Kind(_kill),
    "stopped-rank": Kind(_stop, limit=SILENCE + _SLACK),
    "sigterm": Kind(_terminate, may_miss=True),
    "exception": Kind(_raise, may_miss=True),
    "full-disk": Kind(_fill, needs_root=True),
    "cut-input": Kind(_cut, latest=0.85, may_miss=True),
    "cut-link": Kind(_unlink, limit=SILENCE + _SLACK, needs_root=True),
}
