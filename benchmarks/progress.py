"""Why there is a native progress engine: who moves the messages while both ranks compute.

    python -m benchmarks.progress [--repetitions R] [--mbit SPEED]

The same streams over the same channel, moved by the engine, by nobody between MPI calls, and by a
Python thread that tests the requests every 100 us; and beside them a double-buffered loop of mpi4py
by hand, which has no header, no spec and one size. As root, the last rows go over a slow link
between two hosts, see hosts.py.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

import torch
from mpi4py import MPI

from benchmarks.alone import AloneSide
from benchmarks.bare import BareSide
from benchmarks.launch import launch, rank_command, signals_unwind, watch
from benchmarks.link import pin, transfer_seconds
from benchmarks.load import Load, calibrated
from benchmarks.peers import PipeparSide, Side, alternate
from benchmarks.report import Figure, Report, ratio, scaled
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World
from tests.helpers.cluster.hosts import HostsError, two_hosts

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
    Case("256 B", 256, 1e-3, 1000),
    Case("1 MiB", 1 << 20, 3e-3, 300),
    Case("16 MiB", 1 << 24, 30e-3, 40),
)
_SLOW_LINK: Final = (
    Case("1 MiB", 1 << 20, None, 100),
    Case("16 MiB", 1 << 24, None, 16),
)
# Longer than any run: the engine never looks.
_NEVER: Final = 86400.0
_POLL_SECONDS: Final = 100e-6


def measure(cases: tuple[Case, ...], place: str, repetitions: int) -> None:
    """Compare, and print the figures on rank 0. *Collective*, two ranks."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    comm = MPI.COMM_WORLD
    pin(comm)
    world, still = World.start(), World.start(progress_period=_NEVER)
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
            PipeparSide(comm, still, load, _DEPTH),
            PolledSide(comm, still, load, _DEPTH),
            BareSide(comm, load),
        ]
        bounds, *times = zip(*alternate(sides, repetitions), strict=True)
        figures = [ratio(bounds, seconds) for seconds in times]
        others = [min(pair) for pair in zip(*times[1:3], strict=True)]
        computing = scaled(alone.slowest, 1e3)
        rows.append([case.name, computing, *figures, ratio(others, times[0])])
    world.close()
    still.close()
    if comm.rank == 0:
        report = Report(f"progress: who moves the messages, {place}")
        report.note(f"channel depth {_DEPTH}, {repetitions} repetitions; median (min..max)")
        report.note(
            "engine's gain: the better time of no engine and Python thread / time with the engine"
        )
        report.table(
            "compute-only time / achieved time",
            [
                "micro-batch",
                "computing, ms",
                "engine",
                "no engine",
                "Python thread",
                "by hand",
                "engine's gain",
            ],
            rows,
        )
        report.note("goals: none; these figures say why the engine is there")


class PolledSide(PipeparSide):
    """The channel with a Python thread in the engine's place."""

    name = "Python thread"

    def run(self) -> float:
        """See `Side.run`."""
        engine, stop = self._world._start_engine(), threading.Event()

        def poll() -> None:
            while not stop.is_set():
                engine.poll()
                time.sleep(_POLL_SECONDS)

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            return super().run()
        finally:
            stop.set()
            thread.join()


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
