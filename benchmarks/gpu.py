"""Pipelines on GPUs: what a hop costs the host, what waits, what overlaps, what a stage loses.

    python -m benchmarks.gpu [--ranks N] [--rows R] [--width W] [--layers L] [--microbatches M]

One GPU a rank where there are enough; else several ranks on one, where NCCL allows it, which shows
that all of it works, not how fast it is; else one rank, which shows what it can.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Final

import torch

from benchmarks.calls import hidden_shares
from benchmarks.gpu_sides import Copies, Line, Size, enqueued, enqueued_to_itself
from benchmarks.launch import rank_command, watch
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.gpu.nccl import Nccl
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext, open_device_context
from tests.helpers.cluster.gpus import NO_GPU, Gpus, NoPlace, place
from tests.helpers.cluster.mpirun import mpirun

_SECONDS: Final = 540
_MOST_RANKS: Final = 4
_BURSTS: Final = 20
_HOP_BYTES: Final = (256, 1 << 20)
_HOP_US: Final = 30
_LOSS: Final = 1.05
_SHARED: Final = (
    "several ranks on one GPU: the figures show that it works, and say nothing of its speed"
)


def measure(options: argparse.Namespace) -> None:
    """Measure, and print on rank 0. *Collective.*"""
    torch.set_grad_enabled(False)
    world = World.start()
    context = open_device_context(world, "cuda", print)
    report = None
    if world.rank == 0:
        report = Report("gpu: hops, waits, overlap and loss", torch.get_num_threads())
        report.note(f"placement: {options.placement}")
        if options.shared:
            report.note(_SHARED)
        if options.left_out:
            report.note(f"left out: whatever needs a second rank. {options.left_out}")
    goals = measure_on(world, context, options, report)
    if report is not None:
        report.goals(goals)
    world.close()


def measure_on(
    world: World, context: DeviceContext, options: argparse.Namespace, report: Report | None
) -> list[Goal]:
    """The same on contexts that were taken already; the goals that were measured. *Collective.*"""
    size = Size(options.rows, options.width, options.layers, options.microbatches)
    timings = [*_hops(world, context, report)]
    _overlap(world, context, size, options.repetitions, report)
    line = Line(world, context, size)
    timings += _stages(world, line, options.repetitions, report)
    waits = _waits(world, line, size, report)
    line.close()
    return waits if options.shared else waits + timings


def _hops(world: World, context: DeviceContext, report: Report | None) -> list[Goal]:
    assert context.gpu is not None
    rows: list[list[str | Figure]] = []
    goals: list[Goal] = []
    for nbytes in _HOP_BYTES:
        if world.size > 1:
            bursts = enqueued(world, context.gpu, nbytes, _BURSTS)
        else:
            bursts = enqueued_to_itself(Nccl.load(), context.gpu, nbytes, _BURSTS)
        own = [statistics.median(burst) for burst in bursts]
        ends = {"send": own}
        if world.size > 1:
            sending, taking = _gathered(world, own)[:2]
            ends = {"send": sending, "take the next": taking}
        else:
            ends = {"NCCL alone, a send to itself and its receive": own}
        for what, seconds in ends.items():
            figure = scaled(seconds, 1e6)
            rows.append([f"{what}, {nbytes} B", figure])
            if world.size > 1:
                goals.append(Goal(f"us to {what}, {nbytes} B", "at most", _HOP_US, figure))
    if report is not None:
        report.note(f"a burst's median; median (min..max) of {_BURSTS} bursts")
        report.table("(a) host time to enqueue one hop", ["end", "us"], rows)
    return goals


def _overlap(
    world: World, context: DeviceContext, size: Size, turns: int, report: Report | None
) -> None:
    assert context.gpu is not None
    copies = Copies(context.gpu, size)
    world.all_gather("")
    found = [copies.turn() for _ in range(turns)]
    rows: list[list[str | Figure]] = []
    for rank, each in enumerate(_gathered(world, found)):
        shares = Figure(tuple(hidden_shares(each)))
        columns = (scaled(seconds, 1e3) for seconds in zip(*each, strict=True))
        rows.append([f"rank {rank}", *columns, shares])
    if report is not None:
        report.table(
            f"(c) {size.microbatches} micro-batches copied there and back beside computing, ms",
            ["rank", "computing", "copies", "both", "share of the shorter that is hidden"],
            rows,
        )


def _stages(world: World, line: Line, turns: int, report: Report | None) -> list[Goal]:
    line.together()  # warms up
    found = [[line.alone(), line.together()] for _ in range(turns)]
    every = [list(zip(*each, strict=True)) for each in _gathered(world, found)]
    slowest = [max(alone) for alone in zip(*(alone for alone, _ in every), strict=True)]
    achieved = every[-1][1]
    rows: list[list[str | Figure]] = [
        [f"stage {k}", scaled(alone, 1e3), scaled(piped, 1e3), ratio(piped, slowest)]
        for k, (alone, piped) in enumerate(every)
    ]
    if report is not None:
        report.table(
            "(d) a micro-batch of a stage, ms",
            ["stage", "without a channel", "in the pipeline", "over the slowest without"],
            rows,
        )
    what = "in the pipeline / slowest stage without a channel"
    return [Goal(what, "at most", _LOSS, ratio(achieved, slowest))]


def _waits(world: World, line: Line, size: Size, report: Report | None) -> list[Goal]:
    counted = line.synchronisations()
    told = [counted.calls, counted.total / size.microbatches, str(counted)]
    every = _gathered(world, told)
    if report is not None:
        rows = [
            [f"stage {k}", f"{each:g}" if calls else "not known", names if calls else ""]
            for k, (calls, each, names) in enumerate(every)
        ]
        report.table(
            f"(b) what makes the host wait for the GPU, {size.microbatches} micro-batches",
            ["stage", "a micro-batch", "calls in all"],
            rows,
        )
    blind = [k for k, (calls, _, _) in enumerate(every) if not calls]
    if blind:
        if report is not None:
            report.note(f"the profiler saw no call of CUDA on ranks {blind}: (b) is not known")
        return []
    worst = Figure((max(each for _, each, _ in every),))
    return [Goal("waits of a host for each micro-batch", "at most", 0, worst)]


def _gathered(world: World, own: object) -> list[list]:  # type: ignore[type-arg]
    return [json.loads(text) for text in world.all_gather(json.dumps(own))]


def _start(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    gpus = Gpus.seen()
    ranks = options.ranks or min(max(gpus.count, 2), _MOST_RANKS)
    left_out = ""
    try:
        placed = place(ranks, gpus)
    except NoPlace as error:
        if gpus.count == 0:
            print(f"gpu: {error}; there is nothing to measure here", file=sys.stderr)
            return 1
        ranks, left_out = 1, str(error)
        placed = place(1, gpus)
    told = ["--placement", placed.words, *(["--shared"] if placed.shared else [])]
    told += ["--left-out", left_out] if left_out else []
    command = rank_command("benchmarks.gpu", [*arguments, *told])
    return watch([*mpirun(ranks), *command], _SECONDS, placed.env)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, help="[as many as GPUs, 2 to 4]")
    parser.add_argument("--rows", type=int, default=4096, help="of a micro-batch [4096]")
    parser.add_argument("--width", type=int, default=4096, help="of a row, bfloat16 [4096]")
    parser.add_argument("--layers", type=int, default=8, help="of a stage [8]")
    parser.add_argument("--microbatches", type=int, default=64, help="in a pass [64]")
    parser.add_argument("--repetitions", type=int, default=5, help="of each side [5]")
    parser.add_argument("--placement", default="not told", help="ranks only: how they are placed")
    parser.add_argument("--shared", action="store_true", help="ranks only: several on one GPU")
    parser.add_argument("--left-out", default="", help="ranks only: why there is only one")
    return parser.parse_args(arguments)


def main() -> int:
    """Start the ranks, or be one."""
    options = parsed(sys.argv[1:])
    if not launched():
        return _start(options, sys.argv[1:])
    if not torch.cuda.is_available():
        print(f"gpu: {NO_GPU}", file=sys.stderr)
        return 1
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
