"""Comparisons with torch's pipeline for small and for large micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from mpi4py import MPI

from benchmarks.shared.benchmark import Goal
from benchmarks.shared.report import Row, ratio, scaled
from benchmarks.shared.run import Run
from benchmarks.shared.sides.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.shared.sides.load import Load
from benchmarks.shared.sides.side import seconds_each

SIZES: Final = {"256 B": 5000, "1 MiB": 1000}
"""The micro-batches of a pass, by the size of a micro-batch."""

# A step of torch has a receive buffer for each micro-batch.
_STEPS: Final = {"256 B": 1000, "1 MiB": 256}

SizeSeconds: TypeAlias = dict[str, dict[str, float]]
"""The seconds of a micro-batch, by size and by side."""


def compare(
    run: Run, title: str, *jobs: Callable[[], SizeSeconds]
) -> dict[str, dict[str, list[float]]]:
    """Start jobs in turn, and report the microseconds of a micro-batch.

    Args:
        run: the run, whose option `repetitions` is how often each job is started.
        title: the title of the table.
        jobs: start a job each.

    Returns:
        The seconds of each repetition, by size and by side.
    """
    found: dict[str, dict[str, list[float]]] = {size: {} for size in SIZES}
    for _ in range(run.options.repetitions):
        for job in jobs:
            for size, sides in job().items():
                for side, seconds in sides.items():
                    found[size].setdefault(side, []).append(seconds)
    rows: list[Row] = [
        [size, *(scaled(each, 1e6) for each in found[size].values())] for size in found
    ]
    run.report.table(title, ["size", *found["256 B"]], rows)
    return found


def gpipe_seconds(load_of: Callable[[str], Load], passes: int) -> SizeSeconds:
    """Return the seconds of torch, with and without the merge. *Collective*, two ranks."""
    comm = MPI.COMM_WORLD
    join_gloo(comm, "127.0.0.1", "lo")
    found = {}
    for size in SIZES:
        load = load_of(size)
        sides = [GpipeSide(comm, load, _STEPS[size], merge) for merge in (True, False)]
        found[size] = seconds_each(sides, passes)
    leave_gloo()
    return found


class TorchGoals:
    """The goals for torch / pipepar, with and without the merge of torch's outputs.

    Args:
        ours: the name of pipepar's side.
        limits: the smallest ratio, by size.
    """

    def __init__(self, ours: str, limits: dict[str, float]) -> None:
        ways = ("as called by default", "outputs not joined")
        self.of = {
            size: [Goal(f"{size}: torch, {way} / {ours}", "at least", limit) for way in ways]
            for size, limit in limits.items()
        }
        """The two goals of each size."""

    def report(self, run: Run, size: str, ours: list[float], theirs: list[list[float]]) -> None:
        """Compare the two sides of torch with one of pipepar."""
        for goal, seconds in zip(self.of[size], theirs, strict=True):
            run.report.goal(goal, ratio(seconds, ours))
