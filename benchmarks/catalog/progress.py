"""The progress engine: which code moves messages while both ranks compute.

The same streams over the same channel, moved by the native engine, only inside MPI calls, and by a
Python thread that tests the requests every 100 us; and a double-buffered loop of plain mpi4py,
which has no header, no spec and one size. As root, the last rows use a slow link between two hosts.
"""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Final

from mpi4py import MPI

from benchmarks.shared.benchmark import Benchmark, Option
from benchmarks.shared.pinning import pin
from benchmarks.shared.report import Row, ratio, scaled
from benchmarks.shared.run import Run
from benchmarks.shared.sides.bare import BareSide
from benchmarks.shared.sides.bound import BoundSide
from benchmarks.shared.sides.load import Load, calibrated, transfer_seconds
from benchmarks.shared.sides.pipepar import PipeparSide
from benchmarks.shared.sides.side import Side, alternate
from pipepar.comm.world import World
from tests.helpers.cluster.hosts import HostsError, two_hosts

_DEPTH: Final = 2
_TRANSFER_SHARE: Final = 0.8
# Longer than any run: the engine never tests.
_NEVER: Final = 86400.0
_POLL_SECONDS: Final = 100e-6
_COLUMNS: Final = (
    *("micro-batch", "computing, ms"),
    *("engine", "no engine", "Python thread", "plain mpi4py", "engine's gain"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row: the size of a micro-batch and the time of its computation."""

    nbytes: int
    """The bytes of a micro-batch."""
    seconds: float | None
    """The compute time on each rank; None for 1.25 times the transfer time."""
    microbatches: int
    """The number of micro-batches in one pass."""


_ONE_MACHINE: Final = {
    "256 B": Case(256, 1e-3, 1000),
    "1 MiB": Case(1 << 20, 3e-3, 300),
    "16 MiB": Case(1 << 24, 30e-3, 40),
}
_SLOW_LINK: Final = {"1 MiB": Case(1 << 20, None, 100), "16 MiB": Case(1 << 24, None, 16)}


class PolledSide(PipeparSide):
    """The channel with a Python thread instead of the engine."""

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


def measure(run: Run) -> None:
    """Start the ranks on this machine and on two hosts, and report achieved / compute-only time."""
    report = run.report
    report.note(f"two ranks, channel depth {_DEPTH}, {run.options.repetitions} repetitions")
    report.note("median (min..max) of compute-only time / achieved time")
    report.note(
        "engine's gain: the better time of no engine and Python thread / time with the engine"
    )
    report.table("one machine", _COLUMNS, _rows(run.job("streams", slow_link=False)))
    try:
        with two_hosts(run.options.mbit) as hosts:
            found = run.job("streams", where=hosts, slow_link=True)
        report.table("slow link", _COLUMNS, _rows(found))
    except HostsError as error:
        report.note(f"the slow link is left out: {error}")
    report.note("goals: none; these figures are the reason for the engine")


def streams(options: Namespace) -> dict[str, dict[str, Any]]:
    """Stream all cases through all sides, in turn. *Collective*, two ranks."""
    comm = MPI.COMM_WORLD
    pin(comm)
    world, idle = World.start(), World.start(progress_period=_NEVER)
    found = {}
    for name, case in (_SLOW_LINK if options.slow_link else _ONE_MACHINE).items():
        seconds = case.seconds or transfer_seconds(comm, case.nbytes) / _TRANSFER_SHARE
        work = calibrated(comm, case.nbytes, seconds)
        load = Load.of(case.nbytes, case.microbatches, work, ring=4)
        bound = BoundSide(comm, load)
        sides: list[Side] = [
            bound,
            PipeparSide(comm, world, load, _DEPTH),
            PipeparSide(comm, idle, load, _DEPTH),
            PolledSide(comm, idle, load, _DEPTH),
            BareSide(comm, load),
        ]
        times = list(zip(*alternate(sides, options.repetitions), strict=True))
        found[name] = {"computing": bound.slowest, "seconds": times}
    world.close()
    idle.close()
    return found


def _rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for name, case in found.items():
        bounds, *times = case["seconds"]
        others = [min(pair) for pair in zip(*times[1:3], strict=True)]
        shares = [ratio(bounds, seconds) for seconds in times]
        rows.append([name, scaled(case["computing"], 1e3), *shares, ratio(others, times[0])])
    return rows


BENCHMARK: Final = Benchmark(
    question="why a native progress engine, and why a period of 5 ms?",
    duration="3 minutes; as root, for the slow link",
    measure=measure,
    jobs={"streams": streams},
    options=(
        Option("repetitions", 5, "repetitions of each side"),
        Option("mbit", 500, "speed of the slow link"),
    ),
)
