"""What one hop costs: identity stages on two ranks, beside torch's pipeline and a bare MPI loop.

python -m benchmarks.hop [--depth K] [--repetitions R]
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

import torch
from mpi4py import MPI

from benchmarks.bare import BareSide
from benchmarks.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.launch import launch, launched
from benchmarks.load import Load
from benchmarks.peers import PipeparSide, Side, alternate
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.world import World

_SECONDS: Final = 600
# Bytes, micro-batches of a pass, and of a step of torch's, which holds a buffer for each.
_SIZES: Final = ((256, 5000, 1000), (1 << 20, 1000, 256))


def measure(depth: int, repetitions: int) -> None:
    """Compare, and print the figures on rank 0. *Collective*, two ranks."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    comm, world = MPI.COMM_WORLD, World.start()
    join_gloo(comm, "127.0.0.1", "lo")
    hops: dict[int, list[list[float]]] = {}
    for nbytes, count, a_step in _SIZES:
        load = Load.of(nbytes, count)
        sides: list[Side] = [
            PipeparSide(comm, world, load, depth),
            GpipeSide(comm, load, a_step),
            GpipeSide(comm, load, a_step, merge=True),
            BareSide(comm, load),
        ]
        turns = alternate(sides, repetitions)
        per_hop = [[s / side.microbatches for s, side in zip(t, sides, strict=True)] for t in turns]
        hops[nbytes] = [list(values) for values in zip(*per_hop, strict=True)]
    leave_gloo()
    world.close()
    if comm.rank == 0:
        _print(hops, depth, repetitions)


def _print(hops: dict[int, list[list[float]]], depth: int, repetitions: int) -> None:
    report = Report("hop: two ranks with identity stages, time for each micro-batch")
    report.note(f"channel depth {depth}, {repetitions} repetitions; median (min..max)")
    goals: list[Goal] = []
    rows: list[list[str | Figure]] = []
    ratios: list[list[str | Figure]] = []
    for nbytes, (ours, torchs, merged, bare) in hops.items():
        size = "256 B" if nbytes == 256 else "1 MiB"
        over_torch, over_bare = ratio(torchs, ours), ratio(ours, bare)
        micros = [scaled(values, 1e6) for values in (ours, bare, torchs, merged)]
        rows.append([size, *micros])
        ratios.append([size, over_bare, over_torch, ratio(merged, ours)])
        if nbytes == 256:
            goals.append(Goal("256 B: us a hop", "at most", 25, micros[0]))
            goals.append(Goal("256 B: torch / pipepar", "at least", 5, over_torch))
        else:
            goals.append(Goal("1 MiB: pipepar / bare loop", "at most", 2, over_bare))
            over_merged = ratio(merged, ours)
            goals.append(
                Goal("1 MiB: torch as called by default / pipepar", "at least", 6, over_merged)
            )
            goals.append(
                Goal("1 MiB: torch told not to join outputs / pipepar", "at least", 6, over_torch)
            )
    torch_columns = ["torch ScheduleGPipe", "the same, outputs merged"]
    report.table("one hop, us", ["size", "pipepar", "bare mpi4py", *torch_columns], rows)
    columns = ["size", "pipepar / bare", "torch / pipepar", "torch merged / pipepar"]
    report.table("ratios", columns, ratios)
    report.goals(goals)


def main() -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=4, help="of the channel [4]")
    parser.add_argument("--repetitions", type=int, default=7, help="of each side [7]")
    options = parser.parse_args()
    if not launched():
        return launch("benchmarks.hop", sys.argv[1:], _SECONDS)
    measure(options.depth, options.repetitions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
