"""A transformer encoder through the Python API: how near the bound, and against no pipeline.

    python -m benchmarks.throughput [--layers L] [--size D] [--length S] [--repetitions R]

Two ranks of one thread each, beside the same model unsplit with two threads, in turn.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from typing import Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.encoder import encoder
from benchmarks.launch import launch
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.group.launcher import launched
from pipepar.pipeline import Pipeline

_SECONDS: Final = 900
_MICRO_BATCH: Final = 8
_MICROBATCHES: Final = 48
_POLL_SECONDS: Final = 1e-3


def measure(options: argparse.Namespace) -> None:
    """Compare, and print the figures on rank 0. *Collective*, two ranks."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    comm = MPI.COMM_WORLD
    model = encoder(options.layers, options.size)
    rows = _MICRO_BATCH * _MICROBATCHES
    x = torch.randn(rows, options.length, options.size)
    expected = _unsplit(model, x) if comm.rank == 0 else None
    piped: list[float] = []
    bounds: list[float] = []
    whole: list[float] = []
    for _ in range(options.repetitions):
        seconds, perfect = _pipeline_pass(comm, model, x, expected)
        piped.append(seconds)
        bounds.append(perfect)
        whole.append(_alone(comm, model, x))
    if comm.rank == 0:
        _print(options, piped, bounds, whole)


def _pipeline_pass(
    comm: MPI.Intracomm, model: nn.Module, x: torch.Tensor, expected: torch.Tensor | None
) -> tuple[float, float]:
    """Seconds of one whole batch, and of a perfect pipeline's. *Collective.*

    The pipeline is made anew for each pass: an open one has receives posted, which its engine looks
    after, and the unsplit model should have the cores to itself.
    """
    with Pipeline(model, example_args=(x[:_MICRO_BATCH],), micro_batch=_MICRO_BATCH) as pipe:
        pipe(x[: 8 * _MICRO_BATCH])  # warm-up
        pipe.summary()  # what comes next is counted from here
        gc.collect()
        comm.Barrier()
        begin = time.perf_counter()
        y = pipe(x)
        seconds = time.perf_counter() - begin
        perfect = pipe.summary().bound
    if expected is not None and not torch.equal(y, expected):
        raise ValueError("the pipeline's result differs from the unsplit model's")
    return seconds, perfect


def _alone(comm: MPI.Intracomm, model: nn.Module, x: torch.Tensor) -> float:
    """Seconds of the unsplit model on rank 0, with two threads; others sleep. *Collective.*"""
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
    while not done.Test():  # MPI's own wait would burn the core that the other thread needs
        time.sleep(_POLL_SECONDS)
    return seconds


def _unsplit(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    parts = x.view(-1, _MICRO_BATCH, *x.shape[1:]).unbind()
    return torch.cat([model(part) for part in parts])


def _print(
    options: argparse.Namespace, piped: list[float], bounds: list[float], whole: list[float]
) -> None:
    report = Report(f"throughput: an encoder of {options.layers} layers, and the same unsplit")
    report.note(
        f"size {options.size}, {options.length} tokens, {_MICROBATCHES} micro-batches of "
        f"{_MICRO_BATCH}, {options.repetitions} repetitions; median (min..max); results equal"
    )
    achieved, against = ratio(bounds, piped), ratio(whole, piped)
    rows: list[list[str | Figure]] = [
        ["pipepar, 2 ranks of 1 thread", scaled(piped, 1), achieved],
        ["bound, from its own compute times", scaled(bounds, 1), "1"],
        ["unsplit, 2 threads", scaled(whole, 1), ""],
    ]
    report.table("a batch", ["", "seconds", "achieved / bound"], rows)
    report.goals(
        [
            Goal("pipepar achieved / bound", "at least", 0.97, achieved),
            Goal("unsplit with 2 threads / pipepar, time", "at least", 1.0, against),
        ]
    )


def main() -> int:
    """Start the ranks, or be one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=12, help="of the encoder [12]")
    parser.add_argument("--size", type=int, default=384, help="features of a token [384]")
    parser.add_argument("--length", type=int, default=128, help="tokens [128]")
    parser.add_argument("--repetitions", type=int, default=5, help="of each side [5]")
    options = parser.parse_args()
    if not launched():
        return launch("benchmarks.throughput", sys.argv[1:], _SECONDS)
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
