"""A transformer encoder through the Python API, compared with the bound and with no pipeline.

Two ranks of one thread each and the unsplit model with two threads take turns.
"""

from __future__ import annotations

import gc
import time
from argparse import Namespace
from typing import Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.encoder import encoder
from benchmarks.shared.report import Row, ratio, scaled
from benchmarks.shared.run import Run
from pipepar.pipeline import Pipeline

_MICRO_BATCH: Final = 8
_MICROBATCHES: Final = 48
_POLL_SECONDS: Final = 1e-3
_BOUND: Final = Goal("pipepar achieved / bound", "at least", 0.97)
_UNSPLIT: Final = Goal("unsplit with 2 threads / pipepar, time", "at least", 1.0)


def measure(run: Run) -> None:
    """Start the ranks, and report the seconds of a batch."""
    options = run.options
    run.report.note(
        f"{options.layers} layers, size {options.size}, {options.length} tokens, {_MICROBATCHES} "
        f"micro-batches of {_MICRO_BATCH}, {options.repetitions} repetitions; median (min..max); "
        "results equal"
    )
    found = run.job("batches")
    piped, bounds, whole = found["piped"], found["bounds"], found["whole"]
    achieved = ratio(bounds, piped)
    rows: list[Row] = [
        ["pipepar, 2 ranks of 1 thread", scaled(piped), achieved],
        ["bound, from its own compute times", scaled(bounds), "1"],
        ["unsplit, 2 threads", scaled(whole), ""],
    ]
    run.report.table("a batch", ["", "seconds", "achieved / bound"], rows)
    run.report.goal(_BOUND, achieved)
    run.report.goal(_UNSPLIT, ratio(whole, piped))


def batches(options: Namespace) -> dict[str, list[float]]:
    """Return the seconds of the pipeline, of its bound and of the unsplit model. *Collective.*"""
    comm = MPI.COMM_WORLD
    model = encoder(options.layers, options.size)
    x = torch.randn(_MICRO_BATCH * _MICROBATCHES, options.length, options.size)
    expected = _unsplit(model, x) if comm.rank == 0 else None
    found: dict[str, list[float]] = {"piped": [], "bounds": [], "whole": []}
    for _ in range(options.repetitions):
        seconds, bound = _pipeline_pass(comm, model, x, expected)
        found["piped"].append(seconds)
        found["bounds"].append(bound)
        found["whole"].append(_unsplit_pass(comm, model, x))
    return found


def _pipeline_pass(
    comm: MPI.Intracomm, model: nn.Module, x: torch.Tensor, expected: torch.Tensor | None
) -> tuple[float, float]:
    """Return the seconds of one batch, and those of a perfect pipeline. *Collective.*

    Each pass makes a new pipeline. An open pipeline has posted receives, which its engine tests,
    and would take time from the unsplit model.
    """
    with Pipeline(model, example_args=(x[:_MICRO_BATCH],), micro_batch=_MICRO_BATCH) as pipe:
        pipe(x[: 8 * _MICRO_BATCH])  # warm-up
        pipe.summary()  # resets the times
        gc.collect()
        comm.Barrier()
        begin = time.perf_counter()
        y = pipe(x)
        seconds = time.perf_counter() - begin
        bound = pipe.summary().bound
    if expected is not None and not torch.equal(y, expected):
        raise ValueError("the pipeline's result differs from the unsplit model's")
    return seconds, bound


def _unsplit_pass(comm: MPI.Intracomm, model: nn.Module, x: torch.Tensor) -> float:
    """Return the seconds of the unsplit model with two threads on rank 0. *Collective.*"""
    seconds = 0.0
    if comm.rank == 0:
        torch.set_num_threads(2)
        _unsplit(model, x[: 8 * _MICRO_BATCH])  # warm-up
        gc.collect()
        begin = time.perf_counter()
        _unsplit(model, x)
        seconds = time.perf_counter() - begin
        torch.set_num_threads(1)
    done = comm.Ibarrier()
    while not done.Test():  # a blocking wait would occupy the core of the second thread
        time.sleep(_POLL_SECONDS)
    return seconds


def _unsplit(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    parts = x.view(-1, _MICRO_BATCH, *x.shape[1:]).unbind()
    return torch.cat([model(part) for part in parts])


BENCHMARK: Final = Benchmark(
    question="how fast is a transformer encoder, against no pipeline?",
    duration="3 minutes",
    measure=measure,
    jobs={"batches": batches},
    options=(
        Option("layers", 12, "layers of the encoder"),
        Option("size", 384, "features of a token"),
        Option("length", 128, "tokens of a sample"),
        Option("repetitions", 5, "repetitions of each side"),
    ),
    goals=(_BOUND, _UNSPLIT),
    launchable=True,
)
