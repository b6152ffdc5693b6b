"""What one hop costs: identity stages on two ranks, beside torch's pipeline and a bare MPI loop.

    python -m benchmarks.hop [--depth K] [--repetitions R]

pipepar and torch take turns as jobs of their own, since pipepar tunes its process's allocator and
torch's users do not have that. The bare loop runs in pipepar's job.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Final

import torch
from mpi4py import MPI

from benchmarks.bare import BareSide
from benchmarks.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.launch import figures_of, print_figures
from benchmarks.load import Load
from benchmarks.peers import PipeparSide, Side, alternate
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World

_SECONDS: Final = 120
_PASSES: Final = 3
# Bytes, micro-batches of a pass, and of a step of torch's, which holds a buffer for each.
_SIZES: Final = ((256, 5000, 1000), (1 << 20, 1000, 256))


def measure_pipepar(comm: MPI.Intracomm, depth: int) -> dict[str, list[float]]:
    """Seconds a hop of pipepar and of the bare loop, for each size. *Collective*, two ranks."""
    world = World.start()
    hops = _measure(lambda load, _: [PipeparSide(comm, world, load, depth), BareSide(comm, load)])
    world.close()
    return hops


def measure_torch(comm: MPI.Intracomm, _depth: int) -> dict[str, list[float]]:
    """Seconds a hop of torch's, joining its outputs and not. *Collective*, two ranks."""
    join_gloo(comm, "127.0.0.1", "lo")
    hops = _measure(
        lambda load, step: [GpipeSide(comm, load, step, merge=True), GpipeSide(comm, load, step)]
    )
    leave_gloo()
    return hops


def _measure(sides_of: Callable[[Load, int], list[Side]]) -> dict[str, list[float]]:
    hops: dict[str, list[float]] = {}
    for nbytes, count, step in _SIZES:
        sides = sides_of(Load.of(nbytes, count), step)
        for side, seconds in zip(sides, zip(*alternate(sides, _PASSES), strict=True), strict=True):
            hops.setdefault(side.name, []).append(statistics.median(seconds) / side.microbatches)
    return hops


def _job(job: str, depth: int) -> dict[str, list[float]]:
    return figures_of("benchmarks.hop", ["--job", job, "--depth", str(depth)], _SECONDS)


def _print(turns: list[dict[str, list[float]]], depth: int) -> None:
    report = Report("hop: two ranks with identity stages, time for each micro-batch", ranks=2)
    report.note(f"channel depth {depth}, {len(turns)} repetitions; median (min..max)")
    rows: list[list[str | Figure]] = []
    goals: list[Goal] = []
    for position, size in enumerate(("256 B", "1 MiB")):
        hops = {side: [turn[side][position] for turn in turns] for side in turns[0]}
        rows.append([size, *(scaled(seconds, 1e6) for seconds in hops.values())])
        ours, bare, joined, apart = hops.values()
        if position == 0:
            goals.append(Goal(f"{size}: us a hop", "at most", 25, scaled(ours, 1e6)))
        else:
            goals.append(Goal(f"{size}: pipepar / bare loop", "at most", 2, ratio(ours, bare)))
        least = (5, 6)[position]
        over = ratio(joined, ours)
        goals.append(
            Goal(f"{size}: torch, as called by default / pipepar", "at least", least, over)
        )
        over = ratio(apart, ours)
        goals.append(Goal(f"{size}: torch, outputs not joined / pipepar", "at least", least, over))
    report.table("one hop, us", ["size", *turns[0]], rows)
    report.goals(goals)


def main() -> int:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=4, help="of the channel [4]")
    parser.add_argument("--repetitions", type=int, default=5, help="of each side [5]")
    parser.add_argument("--job", choices=["pipepar", "torch"], help="ranks only: what to measure")
    options = parser.parse_args()
    if not launched():
        jobs = ("pipepar", "torch")
        turns = [
            {side: hops for job in jobs for side, hops in _job(job, options.depth).items()}
            for _ in range(options.repetitions)
        ]
        _print(turns, options.depth)
        return 0
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    measure = measure_torch if options.job == "torch" else measure_pipepar
    hops = measure(MPI.COMM_WORLD, options.depth)
    if MPI.COMM_WORLD.rank == 0:
        print_figures(hops)
    return 0


if __name__ == "__main__":
    sys.exit(main())
