"""What a micro-batch costs through the Python API: beside the bare modules, and torch's pipeline.

    python -m benchmarks.door [--repetitions R]

Two layers that return x + 0, on one rank and on two. Jobs of pipepar and of torch take turns, since
pipepar tunes its process's allocator and torch's users do not have that. The bare modules run in
pipepar's job of one rank.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.launch import figures_of, print_figures
from benchmarks.load import Load, timed
from benchmarks.peers import Side, alternate
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.group.launcher import launched
from pipepar.pipeline import Pipeline

_SECONDS: Final = 180
_PASSES: Final = 5
_RING: Final = 8
_WARM_UP: Final = 4 * _RING
# Shape of a micro-batch, how many in a pass, and in a step of torch's with a buffer for each.
_SIZES: Final = (((1, 64), 5000, 1000), ((4, 128, 512), 1000, 256))
_LABELS: Final = ("256 B", "1 MiB")
_LIMITS: Final = (2.5, 4.0)


class AddZero(nn.Module):
    """A layer that costs next to nothing, and whose result has memory of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a copy."""
        return x + 0


class DoorSide:
    """A long stream through a pipeline, one micro-batch a batch.

    Args:
        comm: all ranks.
        load: what to stream.
        pipe: the pipeline.
    """

    def __init__(self, comm: MPI.Intracomm, load: Load, pipe: Pipeline) -> None:
        self.name = f"pipepar, {comm.size} rank{'s' * (comm.size > 1)}"
        self.microbatches = load.microbatches
        self._comm, self._load, self._pipe = comm, load, pipe

    def check(self) -> None:
        """See `peers.Side.check`."""
        outputs = list(self._pipe.stream(map(self._load.part, range(_WARM_UP))))
        if self._comm.rank == 0:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `peers.Side.run`."""
        batches = map(self._load.part, range(self.microbatches))
        return timed(self._comm, lambda: deque(self._pipe.stream(batches), maxlen=0))


class ModulesSide:
    """The same modules, called in a loop.

    Args:
        comm: one rank.
        load: what to compute.
    """

    name = "bare modules"

    def __init__(self, comm: MPI.Intracomm, load: Load) -> None:
        self.microbatches = load.microbatches
        self._comm, self._load, self._model = comm, load, _model(load)

    def check(self) -> None:
        """See `peers.Side.check`."""
        self._load.require(self.name, list(map(self._model, self._load.parts)))

    def run(self) -> float:
        """See `peers.Side.run`."""
        batches = map(self._load.part, range(self.microbatches))
        return timed(self._comm, lambda: deque(map(self._model, batches), maxlen=0))


def measure_pipepar(comm: MPI.Intracomm, depth: int | None) -> dict[str, list[float]]:
    """Seconds a micro-batch of pipepar, and with one rank of the bare modules. *Collective.*"""
    figures: dict[str, list[float]] = {}
    for shape, count, _ in _SIZES:
        load = _load(shape, count)
        x = load.part(0)
        model, size = _model(load), len(x)
        with Pipeline(
            model, example_args=(x,), micro_batch=size, depth=depth, device="cpu"
        ) as pipe:
            alone: list[Side] = [ModulesSide(comm, load)] if comm.size == 1 else []
            _add(figures, [DoorSide(comm, load, pipe), *alone])
    return figures


def measure_torch(comm: MPI.Intracomm, _depth: int | None) -> dict[str, list[float]]:
    """Seconds a micro-batch of torch's, joining its outputs and not. *Collective*, two ranks."""
    figures: dict[str, list[float]] = {}
    join_gloo(comm, "127.0.0.1", "lo")
    for shape, count, step in _SIZES:
        load = _load(shape, count)
        _add(figures, [GpipeSide(comm, load, step, merge) for merge in (True, False)])
    leave_gloo()
    return figures


def _load(shape: tuple[int, ...], count: int) -> Load:
    noise = torch.Generator().manual_seed(0)
    return Load(tuple(torch.randn(shape, generator=noise) for _ in range(_RING)), count, AddZero())


def _model(load: Load) -> nn.Module:
    return nn.Sequential(load.work, load.work)


def _add(figures: dict[str, list[float]], sides: Sequence[Side]) -> None:
    """Measure sides, and add the seconds of a micro-batch to those of other sizes. *Collective.*"""
    for side, seconds in zip(sides, zip(*alternate(sides, _PASSES), strict=True), strict=True):
        each = statistics.median(seconds) / side.microbatches
        figures.setdefault(side.name, []).append(each)


def _turn(depth: Sequence[str]) -> dict[str, list[float]]:
    """The figures of one job of each kind."""
    job = partial(figures_of, "benchmarks.door", seconds=_SECONDS)
    return {
        **job(["--job", "pipepar", *depth], ranks=1),
        **job(["--job", "pipepar", *depth], ranks=2),
        **job(["--job", "torch"], ranks=2),
    }


def _print(turns: list[dict[str, list[float]]]) -> None:
    report = Report("door: Pipeline.stream through two layers that return x + 0", ranks=2)
    report.note(f"{len(turns)} repetitions; median (min..max)")
    rows: list[list[str | Figure]] = []
    goals: list[Goal] = []
    for position, (size, least) in enumerate(zip(_LABELS, _LIMITS, strict=True)):
        each = {side: [turn[side][position] for turn in turns] for side in turns[0]}
        rows.append([size, *(scaled(seconds, 1e6) for seconds in each.values())])
        one, bare, two, joined, apart = each.values()
        goals += [
            Goal(f"{size}: one rank / bare modules", "at most", 5, ratio(one, bare)),
            Goal(
                f"{size}: torch, as called by default / two ranks",
                "at least",
                least,
                ratio(joined, two),
            ),
            Goal(
                f"{size}: torch, outputs not joined / two ranks",
                "at least",
                least,
                ratio(apart, two),
            ),
        ]
    report.table("a micro-batch, us", ["size", *turns[0]], rows)
    report.goals(goals)


def main() -> int:
    """Start the jobs, or be a rank of one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="of each side [5]")
    parser.add_argument("--depth", type=int, help="of the channels [what pipepar chooses]")
    parser.add_argument("--job", choices=["pipepar", "torch"], help="ranks only: what to measure")
    options = parser.parse_args()
    if not launched():
        depth = [] if options.depth is None else ["--depth", str(options.depth)]
        _print([_turn(depth) for _ in range(options.repetitions)])
        return 0
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    measure = measure_torch if options.job == "torch" else measure_pipepar
    figures = measure(MPI.COMM_WORLD, options.depth)
    if MPI.COMM_WORLD.rank == 0:
        print_figures(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
