"""Pipelines on GPUs: host time of a hop, waits of the host, hidden copies, and loss of a stage.

Each rank gets its own GPU if there are enough. Otherwise several ranks share a GPU where NCCL
allows it, which shows that everything works, but not how fast it is; otherwise there is one rank.
"""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from typing import Any, Final

import torch

from benchmarks.catalog.gpu.copies import Copies, hidden_shares
from benchmarks.catalog.gpu.hops import enqueued, enqueued_to_itself
from benchmarks.catalog.gpu.pipeline import GpuPipeline, Size
from benchmarks.shared.benchmark import Benchmark, BenchmarkError, Goal, Option
from benchmarks.shared.report import Figure, Report, Row, ratio, scaled
from benchmarks.shared.run import Run
from pipepar.comm.gpu.nccl import Nccl
from pipepar.comm.group.launcher import launched
from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext, open_device_context
from tests.helpers.cluster.gpus import NO_GPU, Gpus, NoPlace, place

_MOST_RANKS: Final = 4
_BURSTS: Final = 20
_HOP_BYTES: Final = (256, 1 << 20)
_ENDS: Final = ("send", "receive")
_HOPS: Final = {
    (end, nbytes): Goal(f"us to {end}, {nbytes} B", "at most", 30)
    for nbytes in _HOP_BYTES
    for end in _ENDS
}
_WAITS: Final = Goal("waits of a host for each micro-batch", "at most", 0)
_LOSS: Final = Goal("in the pipeline / slowest stage without a channel", "at most", 1.05)


def measure(run: Run) -> None:
    """Place the ranks on GPUs, start them, and report."""
    options = run.options
    run.report.note(
        f"micro-batches of {options.rows} x {options.width} in bfloat16, {options.layers} layers a "
        f"stage, {options.microbatches} micro-batches, {options.repetitions} repetitions"
    )
    ranks, env, shared = 0, {}, False
    if not launched():
        gpus = Gpus.seen()
        ranks = options.ranks or min(max(gpus.count, 2), _MOST_RANKS)
        try:
            placed = place(ranks, gpus)
        except NoPlace as error:
            if gpus.count == 0:
                raise BenchmarkError(f"{error}; there is nothing to measure here") from error
            run.report.note(f"left out: everything that needs a second rank. {error}")
            ranks, placed = 1, place(1, gpus)
        run.report.note(f"placement: {placed.words}")
        env, shared = dict(placed.env), placed.shared
        if shared:
            run.report.note(
                "several ranks on one GPU: the figures show that it works, and not its speed"
            )
    report_figures(run.report, run.job("measure", ranks, env=env, seconds=540), shared)


def measure_on_ranks(options: Namespace) -> dict[str, Any]:
    """Measure on the GPUs of all ranks. *Collective.*"""
    if not torch.cuda.is_available():
        raise BenchmarkError(NO_GPU)
    world = World.start()
    notes: list[str] = []
    found = measure_on(world, open_device_context(world, "cuda", notes.append), options)
    world.close()
    return {"notes": notes, **found}


def measure_on(world: World, context: DeviceContext, options: Namespace) -> dict[str, Any]:
    """Measure on contexts that are open already. *Collective.*

    Returns:
        Hops: the median seconds of each burst, by rank and bytes. Copies: the seconds of each turn,
        by rank. Stages: the seconds of a micro-batch without and with channels, by rank. Waits: the
        CUDA calls, the waits for each micro-batch, and their names, by rank.
    """
    assert context.gpu is not None
    size = Size(options.rows, options.width, options.layers, options.microbatches)

    def burst_medians(nbytes: int) -> list[float]:
        assert context.gpu is not None
        if world.size > 1:
            bursts = enqueued(world, context.gpu, nbytes, _BURSTS)
        else:
            bursts = enqueued_to_itself(Nccl.load(), context.gpu, nbytes, _BURSTS)
        return [statistics.median(burst) for burst in bursts]

    def all_ranks(own: object) -> list[Any]:
        return [json.loads(text) for text in world.all_gather(json.dumps(own))]

    found: dict[str, Any] = {"hops": all_ranks([burst_medians(nbytes) for nbytes in _HOP_BYTES])}
    copies = Copies(context.gpu, size)
    world.all_gather("")
    found["copies"] = all_ranks([copies.turn() for _ in range(options.repetitions)])
    pipeline = GpuPipeline(world, context, size)
    pipeline.together()  # warm-up
    stages = [[pipeline.alone(), pipeline.together()] for _ in range(options.repetitions)]
    found["stages"] = all_ranks(stages)
    waits = pipeline.waits()
    found["waits"] = all_ranks([waits.calls, waits.total / size.microbatches, str(waits)])
    pipeline.close()
    return found


def report_figures(report: Report, found: dict[str, Any], shared: bool) -> None:
    """Report the figures of `measure_on_ranks`.

    Args:
        report: the report.
        found: the figures.
        shared: whether several ranks share a GPU; then there are no goals for times.
    """
    for note in found.get("notes", ()):
        report.note(note)
    times = _report_hops(report, found["hops"])
    _report_copies(report, found["copies"])
    times[_LOSS] = _report_stages(report, found["stages"])
    _report_waits(report, found["waits"])
    for goal, figure in () if shared else times.items():
        report.goal(goal, figure)


def _report_hops(report: Report, found: list[Any]) -> dict[Goal, Figure]:
    rows: list[Row] = []
    goals = {}
    for position, nbytes in enumerate(_HOP_BYTES):
        if len(found) == 1:
            figure = scaled(found[0][position], 1e6)
            rows.append([f"NCCL alone, a send to itself and its receive, {nbytes} B", figure])
            continue
        for end, by_size in zip(_ENDS, found, strict=False):
            figure = scaled(by_size[position], 1e6)
            rows.append([f"{end}, {nbytes} B", figure])
            goals[_HOPS[end, nbytes]] = figure
    report.note(f"the median of a burst; median (min..max) of {_BURSTS} bursts")
    report.table("(a) host time to enqueue one hop", ["end", "us"], rows)
    return goals


def _report_copies(report: Report, found: list[Any]) -> None:
    rows: list[Row] = []
    for rank, turns in enumerate(found):
        columns = (scaled(seconds, 1e3) for seconds in zip(*turns, strict=True))
        rows.append([f"rank {rank}", *columns, Figure(tuple(hidden_shares(turns)))])
    report.table(
        "(c) micro-batches copied there and back during computation, ms",
        ["rank", "computing", "copies", "both", "share of the shorter that is hidden"],
        rows,
    )


def _report_stages(report: Report, found: list[Any]) -> Figure:
    every = [list(zip(*turns, strict=True)) for turns in found]
    slowest = [max(alone) for alone in zip(*(alone for alone, _ in every), strict=True)]
    report.table(
        "(d) a micro-batch of a stage, ms",
        ["stage", "without a channel", "in the pipeline", "over the slowest without"],
        [
            [f"stage {k}", scaled(alone, 1e3), scaled(piped, 1e3), ratio(piped, slowest)]
            for k, (alone, piped) in enumerate(every)
        ],
    )
    return ratio(every[-1][1], slowest)


def _report_waits(report: Report, found: list[Any]) -> None:
    report.table(
        "(b) calls that make the host wait for the GPU",
        ["stage", "a micro-batch", "calls in all"],
        [
            [f"stage {k}", f"{each:g}" if calls else "not known", names if calls else ""]
            for k, (calls, each, names) in enumerate(found)
        ],
    )
    blind = [k for k, (calls, _, _) in enumerate(found) if not calls]
    if blind:
        report.note(f"the profiler recorded no CUDA call on ranks {blind}: (b) is not known")
    else:
        report.goal(_WAITS, Figure((max(each for _, each, _ in found),)))


BENCHMARK: Final = Benchmark(
    question="what does a pipeline cost on GPUs?",
    duration="with GPUs; see tests/gpu/README.md",
    measure=measure,
    jobs={"measure": measure_on_ranks},
    options=(
        Option("ranks", 0, "number of ranks; 0 for as many as GPUs, 2 to 4"),
        Option("rows", 4096, "rows of a micro-batch"),
        Option("width", 4096, "columns of a micro-batch, bfloat16"),
        Option("layers", 8, "layers of a stage"),
        Option("microbatches", 64, "micro-batches of a pass"),
        Option("repetitions", 5, "repetitions of each side"),
    ),
    goals=(*_HOPS.values(), _WAITS, _LOSS),
    launchable=True,
)
