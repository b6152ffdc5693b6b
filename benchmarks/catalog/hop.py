"""The cost of a hop: identity stages on two ranks, compared with torch and with plain mpi4py.

pipepar and torch run in separate jobs that alternate, because pipepar tunes the allocator of its
process. The loop of plain mpi4py runs in the job of pipepar.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Final

from mpi4py import MPI

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import Row, ratio, scaled
from benchmarks.shared.run import Run, turns
from benchmarks.shared.sides.bare import BareSide
from benchmarks.shared.sides.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.shared.sides.load import Load
from benchmarks.shared.sides.pipepar import PipeparSide
from benchmarks.shared.sides.side import Side, seconds_each
from pipepar.comm.world import World

_PASSES: Final = 3
_SIZES: Final = {"256 B": 256, "1 MiB": 1 << 20}
_MICROBATCHES: Final = {"256 B": 5000, "1 MiB": 1000}
# A step of torch has a buffer for each micro-batch.
_STEPS: Final = {"256 B": 1000, "1 MiB": 256}

_JOINED: Final = "torch, as called by default / pipepar"
_APART: Final = "torch, outputs not joined / pipepar"
_HOP: Final = Goal("256 B: us a hop", "at most", 25)
_BARE: Final = Goal("1 MiB: pipepar / plain mpi4py", "at most", 2)
_TORCH: Final = {
    size: [Goal(f"{size}: {what}", "at least", limit) for what in (_JOINED, _APART)]
    for size, limit in (("256 B", 5), ("1 MiB", 6))
}


def measure(run: Run) -> None:
    """Start the jobs in turn, and report the seconds of a hop."""
    depth, repetitions = run.options.depth, run.options.repetitions
    run.report.note(
        f"two ranks with identity stages, channel depth {depth}, {repetitions} repetitions; "
        "median (min..max)"
    )
    found = turns(repetitions, partial(run.job, "pipepar"), partial(run.job, "torch"))
    rows: list[Row] = []
    for size in _SIZES:
        hops = {side: [turn[side][size] for turn in found] for side in found[0]}
        rows.append([size, *(scaled(seconds, 1e6) for seconds in hops.values())])
        ours, bare, joined, apart = hops.values()
        if size == "256 B":
            run.report.goal(_HOP, scaled(ours, 1e6))
        else:
            run.report.goal(_BARE, ratio(ours, bare))
        for goal, theirs in zip(_TORCH[size], (joined, apart), strict=True):
            run.report.goal(goal, ratio(theirs, ours))
    run.report.table("one hop, us", ["size", *found[0]], rows)


def measure_pipepar(options: Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of a hop of pipepar and of plain mpi4py. *Collective*, two ranks."""
    comm, world = MPI.COMM_WORLD, World.start()
    hops = _hops(
        lambda load, _: [PipeparSide(comm, world, load, options.depth), BareSide(comm, load)]
    )
    world.close()
    return hops


def measure_torch(options: Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of a hop of torch, with and without the merge. *Collective*, two ranks."""
    comm = MPI.COMM_WORLD
    join_gloo(comm, "127.0.0.1", "lo")
    hops = _hops(lambda load, step: [GpipeSide(comm, load, step, merge) for merge in (True, False)])
    leave_gloo()
    return hops


def _hops(sides_of: Callable[[Load, int], list[Side]]) -> dict[str, dict[str, float]]:
    """Return the seconds of a hop by side and size. *Collective.*"""
    hops: dict[str, dict[str, float]] = {}
    for size, nbytes in _SIZES.items():
        sides = sides_of(Load.of(nbytes, _MICROBATCHES[size]), _STEPS[size])
        for name, seconds in seconds_each(sides, _PASSES).items():
            hops.setdefault(name, {})[size] = seconds
    return hops


BENCHMARK: Final = Benchmark(
    question="what does one hop cost?",
    duration="2 minutes",
    measure=measure,
    jobs={"pipepar": measure_pipepar, "torch": measure_torch},
    options=(
        Option("depth", 4, "depth of the channel"),
        Option("repetitions", 5, "repetitions of each side"),
    ),
    goals=(_HOP, *_TORCH["256 B"], _BARE, *_TORCH["1 MiB"]),
)
