"""Why there is a native progress engine: who moves the messages while both ranks compute.

    python -m benchmarks.progress [--repetitions R] [--mbit SPEED]

The same streams by pipepar's channel with the engine, by a plain double-buffered loop of mpi4py,
which moves messages only inside MPI calls, and by that loop with a Python thread that tests the
requests. As root, the last row goes over a slow link between two hosts, see hosts.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Final

import torch
from mpi4py import MPI

from benchmarks.alone import AloneSide
from benchmarks.bare import BareSide
from benchmarks.hosts import HostsError, two_hosts
from benchmarks.launch import launch, launched, rank_command, signals_unwind, watch
from benchmarks.link import pin, transfer_seconds
from benchmarks.load import Load, calibrated
from benchmarks.peers import PipeparSide, Side, alternate
from benchmarks.report import Figure, Report, ratio, scaled
from pipepar.comm.world import World

_SECONDS: Final = 600
_DEPTH: Final = 2
_TRANSFER_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a size, and how much is computed for it."""

    name: str
    """As printed."""
    nbytes: int
    """Of a micro-batch."""
    seconds: float | None
    """Computing for a micro-batch on each rank; None: so that the transfer is 0.8 of it."""
    microbatches: int
    """In one pass."""


_ONE_MACHINE: Final = (
    Case("256 B", 256, 50e-6, 4000),
    Case("1 MiB", 1 << 20, 3e-3, 150),
    Case("16 MiB", 1 << 24, 30e-3, 24),
)
_SLOW_LINK: Final = (Case("16 MB", 16_000_000 // 1024 * 1024, None, 16),)


def measure(cases: tuple[Case, ...], place: str, repetitions: int) -> None:
    """Compare, and print the figures on rank 0. *Collective*, two ranks."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    comm = MPI.COMM_WORLD
    pin(comm)
    world = World.start()
    rows: list[list[str | Figure]] = []
    for case in cases:
        seconds = case.seconds or transfer_seconds(comm, case.nbytes) / _TRANSFER_SHARE
        load = Load.of(
            case.nbytes, case.microbatches, calibrated(comm, case.nbytes, seconds), ring=4
        )
        alone = AloneSide(comm, load)
        sides: list[Side] = [
            alone,
            PipeparSide(comm, world, load, _DEPTH),
            BareSide(comm, load),
            BareSide(comm, load, polled=True),
        ]
        bounds, *times = zip(*alternate(sides, repetitions), strict=True)
        figures = [ratio(bounds, seconds) for seconds in times]
        others = [min(pair) for pair in zip(*times[1:], strict=True)]
        computing = scaled(alone.slowest, 1e3)
        rows.append([case.name, computing, *figures, ratio(others, times[0])])
    world.close()
    if comm.rank == 0:
        report = Report(f"progress: who moves the messages, {place}")
        report.note(f"channel depth {_DEPTH}, {repetitions} repetitions; median (min..max)")
        report.note("engine's gain: time of the better of the two others / time with the engine")
        report.table(
            "compute-only time / achieved time",
            [
                "micro-batch",
                "computing, ms",
                "engine",
                "plain mpi4py",
                "Python thread",
                "engine's gain",
            ],
            rows,
        )
        report.note("goals: none; these figures say why the engine is there")


def main() -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="of each side [5]")
    parser.add_argument("--mbit", type=int, default=500, help="speed of the slow link [500]")
    parser.add_argument("--slow-link", action="store_true", help="ranks only: the slow link's row")
    options = parser.parse_args()
    if launched():
        if options.slow_link:
            measure(_SLOW_LINK, "slow link", options.repetitions)
        else:
            measure(_ONE_MACHINE, "one machine", options.repetitions)
        return 0
    status = launch("benchmarks.progress", sys.argv[1:], _SECONDS)
    try:
        with signals_unwind(), two_hosts(options.mbit) as hosts:
            command = rank_command("benchmarks.progress", [*sys.argv[1:], "--slow-link"])
            return watch(hosts.mpirun(command), _SECONDS) or status
    except HostsError as error:
        print(f"progress: the slow link is left out: {error}")
        return status


if __name__ == "__main__":
    sys.exit(main())
