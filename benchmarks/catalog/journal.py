"""The cost of the journal: the same job with it and without it, in turn.

Without it means that nothing is added to the journal; this is not a choice for users.
"""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest.mock import patch

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import Row, ratio, scaled
from benchmarks.shared.run import Run
from pipepar.comm.world import World
from pipepar.data.writers.journal import Journal
from pipepar.jobs.run import Job, run_job
from pipepar.supervision.failure import FailTogether

_MICRO_BATCH: Final = 32
_SPEED: Final = Goal("speed with the journal / without", "at least", 0.98)


def measure(run: Run) -> None:
    """Start the ranks, and report the seconds of a job."""
    options = run.options
    run.report.note(
        f"{options.model} on {options.input}, {options.ranks} ranks, micro-batches of "
        f"{_MICRO_BATCH}, {options.repetitions} repetitions; median (min..max)"
    )
    with TemporaryDirectory(dir=options.folder or Path(options.input).parent) as folder:
        found = run.job("jobs", options.ranks, seconds=1800, folder=folder)
    speed = ratio(found["without"], found["with"])
    rows: list[Row] = [
        ["with the journal", scaled(found["with"]), speed],
        ["without", scaled(found["without"]), "1"],
    ]
    run.report.table("a job", ["", "seconds", "speed / without"], rows)
    run.report.goal(_SPEED, speed)


def jobs(options: Namespace) -> dict[str, list[float]]:
    """Return the seconds from the first micro-batch to the last row on disk. *Collective.*"""
    world = World.start()
    output = Path(options.folder) / "out.npy"
    job = Job(options.model, Path(options.input), output, micro_batch=_MICRO_BATCH, device="cpu")
    found: dict[str, list[float]] = {"with": [], "without": []}
    with FailTogether(world):
        for repetition in range(options.repetitions + 1):
            for side, seconds in found.items():
                disabled = patch.object(Journal, "add") if side == "without" else nullcontext()
                with disabled:
                    elapsed = run_job(world, job).seconds
                if repetition:  # the first pair fills the page cache and the profile cache
                    seconds.append(elapsed)
    world.close()
    return found


BENCHMARK: Final = Benchmark(
    question="what does a resumable output cost?",
    duration="8 minutes; after make demo",
    measure=measure,
    jobs={"jobs": jobs},
    options=(
        Option("model", ".demo/minilm", "the model; by default that of the demo"),
        Option("input", ".demo/passages.txt", "the input; by default that of the demo"),
        Option("ranks", 2, "number of ranks"),
        Option("repetitions", 5, "repetitions of each side"),
        Option("folder", "", "folder for the output, on a disk; by default that of the input"),
    ),
    goals=(_SPEED,),
)
