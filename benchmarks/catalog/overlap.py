"""Overlap of transfers and computation: two hosts and a slow link, compared with torch and mpi4py.

As root, the benchmark makes the two hosts itself. Started by mpirun or srun on two real hosts, it
measures those; --address and --interface then give the path of torch's gloo between them.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Final

from mpi4py import MPI

from benchmarks.shared.benchmark import Benchmark, BenchmarkError, Goal, Option
from benchmarks.shared.pinning import pin
from benchmarks.shared.report import Figure, Row, ratio, scaled
from benchmarks.shared.run import Run
from benchmarks.shared.sides.bare import BareSide
from benchmarks.shared.sides.bound import BoundSide
from benchmarks.shared.sides.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.shared.sides.load import Load, calibrated, transfer_seconds
from benchmarks.shared.sides.pipepar import PipeparSide
from benchmarks.shared.sides.side import Side, alternate
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World
from tests.helpers.cluster.hosts import INTERFACE, HostsError, two_hosts

_TRANSFER_SHARE: Final = 0.8
_MIB: Final = 1 << 20
_BOUND: Final = Goal("pipepar achieved / bound", "at least", 0.95)
_TORCH: Final = Goal("torch / pipepar time", "at least", 1.2)


def measure(run: Run) -> None:
    """Start the ranks on two hosts, and report the seconds of a pass."""
    if launched():
        _report(run, run.job("stream"))
        return
    try:
        with two_hosts(run.options.mbit) as hosts:
            found = run.job("stream", where=hosts, address=hosts.addresses[0], interface=INTERFACE)
    except HostsError as error:
        raise BenchmarkError(f"no two hosts here: {error}", status=2) from error
    _report(run, found)


def stream(options: Namespace) -> dict[str, Any]:
    """Stream the same load through all sides in turn. *Collective*, two ranks."""
    comm = MPI.COMM_WORLD
    pin(comm)
    world = World.start()
    nbytes = options.mib * _MIB
    transfer = transfer_seconds(comm, nbytes)
    work = calibrated(comm, nbytes, transfer / _TRANSFER_SHARE)
    load = Load.of(nbytes, options.microbatches, work)
    join_gloo(comm, options.address, options.interface)
    bound = BoundSide(comm, load)
    pipepar = PipeparSide(comm, world, load, options.depth)
    gpipe = GpipeSide(comm, load, load.microbatches)
    sides: list[Side] = [bound, pipepar, gpipe, BareSide(comm, load)]
    seconds = list(zip(*alternate(sides, options.repetitions), strict=True))
    leave_gloo()
    world.close()
    return {
        "transfer": transfer,
        "computing": {"alone": bound.slowest, "overlapped": pipepar.slowest},
        "seconds": {side.name: each for side, each in zip(sides, seconds, strict=True)},
    }


def _report(run: Run, found: dict[str, Any]) -> None:
    options, report, transfer = run.options, run.report, found["transfer"]
    alone, overlapped = found["computing"]["alone"], found["computing"]["overlapped"]
    report.note(
        f"two ranks, {options.microbatches} micro-batches of {options.mib} MiB, channel depth "
        f"{options.depth}, {options.repetitions} repetitions; median (min..max)"
    )
    report.note(
        f"one transfer {transfer * 1e3:.0f} ms ({options.mib * _MIB * 8e-6 / transfer:.0f} "
        f"Mbit/s), one computation {scaled(alone, 1e3)} ms"
    )
    passes = (options.microbatches + 1) * Figure(tuple(alone)).median
    report.note(
        "no computation overlaps the first transfer: at most "
        f"{passes / (passes + transfer):.3f} of the bound can be reached"
    )
    report.note(
        f"during the transfers of pipepar, the same computation takes {ratio(overlapped, alone)} "
        "times as long; on these hosts the cores move the packets too"
    )
    seconds = found["seconds"]
    (bound, bounds), *others = seconds.items()
    ours = seconds[PipeparSide.name]
    rows: list[Row] = [[bound, scaled(bounds), "1", ""]]
    for name, each in others:
        rows.append([name, scaled(each), ratio(bounds, each), ratio(each, ours)])
    report.table("a pass", ["side", "seconds", "achieved / bound", "time / pipepar's"], rows)
    report.goal(_BOUND, ratio(bounds, ours))
    report.goal(_TORCH, ratio(others[1][1], ours))


BENCHMARK: Final = Benchmark(
    question="do transfers overlap with computation?",
    duration="2 minutes; as root, for the two hosts",
    measure=measure,
    jobs={"stream": stream},
    options=(
        Option("mbit", 500, "speed of the link"),
        Option("mib", 4, "size of a micro-batch"),
        Option("microbatches", 64, "micro-batches of a pass"),
        Option("depth", 2, "depth of the channel"),
        Option("repetitions", 3, "repetitions of each side"),
        Option("address", "127.0.0.1", "address of the host of rank 0, on real hosts"),
        Option("interface", "lo", "network interface of each host, for gloo, on real hosts"),
    ),
    goals=(_BOUND, _TORCH),
    launchable=True,
)
