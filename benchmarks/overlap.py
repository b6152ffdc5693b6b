"""Transfers behind computing: two hosts and a slow link, beside torch's pipeline and plain MPI.

    python -m benchmarks.overlap [--mbit SPEED] [--mib SIZE] [--microbatches M] [--repetitions R]

As root it makes the two hosts itself (see hosts.py). Started by an mpirun or srun over two real
hosts it measures those; then --address and --interface say how torch's gloo gets from one to the
other.
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

import torch
from mpi4py import MPI

from benchmarks.alone import AloneSide
from benchmarks.bare import BareSide
from benchmarks.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.launch import rank_command, signals_unwind, watch
from benchmarks.link import pin, transfer_seconds
from benchmarks.load import Load, calibrated
from benchmarks.peers import PipeparSide, Side, alternate
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World
from tests.helpers.cluster.hosts import INTERFACE, HostsError, two_hosts

_SECONDS: Final = 900
_TRANSFER_SHARE: Final = 0.8
_MIB: Final = 1 << 20


def measure(options: argparse.Namespace) -> None:
    """Compare, and print the figures on rank 0. *Collective*, two ranks."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    comm = MPI.COMM_WORLD
    pin(comm)
    world = World.start()
    nbytes = options.mib * _MIB
    transfer = transfer_seconds(comm, nbytes)
    work = calibrated(comm, nbytes, transfer / _TRANSFER_SHARE)
    load = Load.of(nbytes, options.microbatches, work)
    join_gloo(comm, options.address, options.interface)
    alone = AloneSide(comm, load)
    pipepar = PipeparSide(comm, world, load, options.depth)
    sides: list[Side] = [
        alone,
        pipepar,
        GpipeSide(comm, load, load.microbatches),
        BareSide(comm, load),
    ]
    turns = list(alternate(sides, options.repetitions))
    leave_gloo()
    world.close()
    if comm.rank == 0:
        _print(options, transfer, (alone.slowest, pipepar.slowest), turns)


def _print(
    options: argparse.Namespace,
    transfer: float,
    stages: tuple[list[float], list[float]],
    turns: list[list[float]],
) -> None:
    report = Report("overlap: two hosts, transfer about as long as computing")
    report.note(
        f"{options.microbatches} micro-batches of {options.mib} MiB, channel depth "
        f"{options.depth}, {options.repetitions} repetitions; median (min..max)"
    )
    report.note(
        f"one transfer {transfer * 1e3:.0f} ms ({options.mib * _MIB * 8e-6 / transfer:.0f} "
        f"Mbit/s), one computation {scaled(stages[0], 1e3)} ms"
    )
    count, step = options.microbatches, Figure(tuple(stages[0])).median
    report.note(
        f"the first transfer has nothing to hide behind: at most "
        f"{(count + 1) * step / ((count + 1) * step + transfer):.3f} of the bound can be reached"
    )
    report.note(
        f"beside pipepar's transfers, the same computation takes {ratio(stages[1], stages[0])} "
        "times as long; on these hosts the cores move the packets too"
    )
    bounds, ours, torchs, bare = (list(values) for values in zip(*turns, strict=True))
    rows: list[list[str | Figure]] = [["bound, no transfer", scaled(bounds, 1), "1", ""]]
    named = {"pipepar": ours, "torch ScheduleGPipe": torchs, "plain mpi4py": bare}
    for name, seconds in named.items():
        rows.append([name, scaled(seconds, 1), ratio(bounds, seconds), ratio(seconds, ours)])
    report.table("a pass", ["side", "seconds", "achieved / bound", "time / pipepar's"], rows)
    achieved, over_torch = ratio(bounds, ours), ratio(torchs, ours)
    report.goals(
        [
            Goal("pipepar achieved / bound", "at least", 0.95, achieved),
            Goal("torch / pipepar time", "at least", 1.2, over_torch),
        ]
    )


def main() -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mbit", type=int, default=500, help="speed of the link [500]")
    parser.add_argument("--mib", type=int, default=4, help="size of a micro-batch [4]")
    parser.add_argument("--microbatches", type=int, default=64, help="in a pass [64]")
    parser.add_argument("--depth", type=int, default=2, help="of the channel [2]")
    parser.add_argument("--repetitions", type=int, default=3, help="of each side [3]")
    parser.add_argument("--address", default="127.0.0.1", help="of rank 0's host")
    parser.add_argument("--interface", default="lo", help="of each host, for gloo")
    options = parser.parse_args()
    if launched():
        measure(options)
        return 0
    try:
        with signals_unwind(), two_hosts(options.mbit) as hosts:
            place = ["--address", hosts.addresses[0], "--interface", INTERFACE]
            command = rank_command("benchmarks.overlap", [*sys.argv[1:], *place])
            return watch(hosts.mpirun(command), _SECONDS)
    except HostsError as error:
        print(f"overlap: no two hosts here: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
