"""What does the journal cost? The same job with it and without, in turn.

    python -m benchmarks.journal [--model FOLDER] [--input FILE] [--ranks R] [--repetitions R]

Without means a journal that nothing is added to; users have no such choice.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.launch import launch
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World
from pipepar.data.writers.journal import Journal
from pipepar.jobs.run import Job, run_job
from pipepar.supervision.failure import FailTogether

_SECONDS = 1800
_MICRO_BATCH = 32


def measure(world: World, options: argparse.Namespace) -> None:
    """Compare, and print the figures on rank 0. *Collective.*"""
    kept, bare = list[float](), list[float]()
    for repetition in range(options.repetitions + 1):
        seconds = [_seconds(world, options, journal) for journal in (True, False)]
        if repetition:  # the first pair warms the file cache and the kept times up
            kept.append(seconds[0])
            bare.append(seconds[1])
    if world.rank == 0:
        _print(options, kept, bare)


def _seconds(world: World, options: argparse.Namespace, journal: bool) -> float:
    """Seconds of one job, from its first micro-batch to its last result on disk. *Collective.*"""
    output = Path(options.folder) / "out.npy"
    job = Job(options.model, Path(options.input), output, micro_batch=_MICRO_BATCH, device="cpu")
    with nullcontext() if journal else _without_journal():
        return run_job(world, job).seconds


def _without_journal() -> AbstractContextManager[Any]:
    return patch.object(Journal, "add")


def _print(options: argparse.Namespace, kept: list[float], bare: list[float]) -> None:
    report = Report("journal: an output that can be resumed, and one that cannot")
    report.note(
        f"{options.model} on {options.input}, micro-batches of {_MICRO_BATCH}, "
        f"{options.repetitions} repetitions; median (min..max)"
    )
    speed = ratio(bare, kept)
    rows: list[list[str | Figure]] = [
        ["with the journal", scaled(kept, 1), speed],
        ["without", scaled(bare, 1), "1"],
    ]
    report.table("a job", ["", "seconds", "speed / without"], rows)
    report.goals([Goal("speed with the journal / without", "at least", 0.98, speed)])


def main() -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=".demo/minilm", help="the demo's, after make demo")
    parser.add_argument("--input", default=".demo/passages.txt", help="the demo's")
    parser.add_argument("--ranks", type=int, default=2, help="how many [2]")
    parser.add_argument("--repetitions", type=int, default=5, help="of each side [5]")
    parser.add_argument("--folder", help="where to write; it must be on a disk [beside the input]")
    options = parser.parse_args()
    if not launched():
        with TemporaryDirectory(dir=options.folder or Path(options.input).parent) as folder:
            arguments = [*sys.argv[1:], "--folder", folder]
            return launch("benchmarks.journal", arguments, _SECONDS, options.ranks)
    world = World.start()
    with FailTogether(world):
        measure(world, options)
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
