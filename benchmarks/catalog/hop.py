"""The cost of a hop: identity stages on two ranks, compared with torch and with plain mpi4py.

pipepar and torch run in separate jobs that alternate, because pipepar tunes the allocator of its
process. The loop of plain mpi4py runs in the job of pipepar.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from typing import Final

from mpi4py import MPI

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import ratio, scaled
from benchmarks.shared.run import Run
from benchmarks.shared.sides.bare import BareSide
from benchmarks.shared.sides.load import Load
from benchmarks.shared.sides.pipepar import PipeparSide
from benchmarks.shared.sides.side import Side, seconds_each
from benchmarks.shared.sides.sizes import SIZES, SizeSeconds, TorchGoals, compare, gpipe_seconds
from pipepar.comm.world import World

_PASSES: Final = 3
_BYTES: Final = {"256 B": 256, "1 MiB": 1 << 20}
_HOP: Final = Goal("256 B: us a hop", "at most", 25)
_BARE: Final = Goal("1 MiB: pipepar / plain mpi4py", "at most", 2)
_TORCH: Final = TorchGoals("pipepar", {"256 B": 5, "1 MiB": 6})


def measure(run: Run) -> None:
    """Start the jobs in turn, and report the time of a hop."""
    depth, repetitions = run.options.depth, run.options.repetitions
    run.report.note(
        f"two ranks with identity stages, channel depth {depth}, {repetitions} repetitions; "
        "median (min..max)"
    )
    found = compare(run, "one hop, us", partial(run.job, "pipepar"), partial(run.job, "torch"))
    for size, sides in found.items():
        ours, bare, *theirs = sides.values()
        if size == "256 B":
            run.report.goal(_HOP, scaled(ours, 1e6))
        else:
            run.report.goal(_BARE, ratio(ours, bare))
        _TORCH.report(run, size, ours, theirs)


def measure_pipepar(options: Namespace) -> SizeSeconds:
    """Return the seconds of a hop of pipepar and of plain mpi4py. *Collective*, two ranks."""
    comm, world = MPI.COMM_WORLD, World.start()
    found = {}
    for size in SIZES:
        load = _load(size)
        sides: list[Side] = [PipeparSide(comm, world, load, options.depth), BareSide(comm, load)]
        found[size] = seconds_each(sides, _PASSES)
    world.close()
    return found


def measure_torch(options: Namespace) -> SizeSeconds:
    """Return the seconds of a hop of torch, with and without the merge. *Collective*, two ranks."""
    return gpipe_seconds(_load, _PASSES)


def _load(size: str) -> Load:
    return Load.of(_BYTES[size], SIZES[size])


BENCHMARK: Final = Benchmark(
    question="what does one hop cost?",
    duration="2 minutes",
    measure=measure,
    jobs={"pipepar": measure_pipepar, "torch": measure_torch},
    options=(
        Option("depth", 4, "depth of the channel"),
        Option("repetitions", 5, "repetitions of each side"),
    ),
    goals=(_HOP, *_TORCH.of["256 B"], _BARE, *_TORCH.of["1 MiB"]),
)
