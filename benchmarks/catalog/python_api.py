"""The cost of a micro-batch through `Pipeline.stream`, compared with the bare modules and torch.

Two layers that return x + 0, on one rank and on two. pipepar and torch run in separate jobs that
alternate, because pipepar tunes the allocator of its process. The bare modules run in the job of
pipepar on one rank.
"""

from __future__ import annotations

from argparse import Namespace
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import Row, ratio, scaled
from benchmarks.shared.run import Run, turns
from benchmarks.shared.sides.gpipe import GpipeSide, join_gloo, leave_gloo
from benchmarks.shared.sides.load import Load, timed
from benchmarks.shared.sides.side import Side, seconds_each
from pipepar.pipeline import Pipeline

_PASSES: Final = 5
_RING: Final = 8
_SHAPES: Final = {"256 B": (1, 64), "1 MiB": (4, 128, 512)}
_MICROBATCHES: Final = {"256 B": 5000, "1 MiB": 1000}
# A step of torch has a buffer for each micro-batch.
_STEPS: Final = {"256 B": 1000, "1 MiB": 256}

_MODULES: Final = {size: Goal(f"{size}: one rank / bare modules", "at most", 5) for size in _SHAPES}
_JOINED: Final = "torch, as called by default / two ranks"
_APART: Final = "torch, outputs not joined / two ranks"
_TORCH: Final = {
    size: [Goal(f"{size}: {what}", "at least", limit) for what in (_JOINED, _APART)]
    for size, limit in (("256 B", 2.5), ("1 MiB", 4.0))
}


class AddZero(nn.Module):
    """A cheap layer that returns new memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a copy of the input."""
        return x + 0


class StreamSide:
    """A long stream through a pipeline, one micro-batch a batch.

    Args:
        comm: all ranks.
        load: the load to stream.
        pipe: the pipeline.
    """

    def __init__(self, comm: MPI.Intracomm, load: Load, pipe: Pipeline) -> None:
        self.name = f"pipepar, {comm.size} rank{'s' * (comm.size > 1)}"
        self.microbatches = load.microbatches
        self._comm, self._load, self._pipe = comm, load, pipe

    def check(self) -> None:
        """See `Side.check`."""
        outputs = list(self._pipe.stream(map(self._load.part, range(4 * _RING))))
        if self._comm.rank == 0:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `Side.run`."""
        batches = map(self._load.part, range(self.microbatches))
        return timed(self._comm, lambda: deque(self._pipe.stream(batches), maxlen=0))


class ModulesSide:
    """The same modules, called in a loop.

    Args:
        comm: one rank.
        load: the load to compute.
        model: the modules.
    """

    name = "bare modules"

    def __init__(self, comm: MPI.Intracomm, load: Load, model: nn.Module) -> None:
        self.microbatches = load.microbatches
        self._comm, self._load, self._model = comm, load, model

    def check(self) -> None:
        """See `Side.check`."""
        self._load.require(self.name, list(map(self._model, self._load.parts)))

    def run(self) -> float:
        """See `Side.run`."""
        batches = map(self._load.part, range(self.microbatches))
        return timed(self._comm, lambda: deque(map(self._model, batches), maxlen=0))


def measure(run: Run) -> None:
    """Start the jobs in turn, and report the seconds of a micro-batch."""
    repetitions = run.options.repetitions
    run.report.note(f"two layers that return x + 0, {repetitions} repetitions; median (min..max)")
    found = turns(
        repetitions,
        partial(run.job, "pipepar", ranks=1),
        partial(run.job, "pipepar", ranks=2),
        partial(run.job, "torch", ranks=2),
    )
    rows: list[Row] = []
    for size in _SHAPES:
        each = {side: [turn[side][size] for turn in found] for side in found[0]}
        rows.append([size, *(scaled(seconds, 1e6) for seconds in each.values())])
        one, bare, two, joined, apart = each.values()
        run.report.goal(_MODULES[size], ratio(one, bare))
        for goal, theirs in zip(_TORCH[size], (joined, apart), strict=True):
            run.report.goal(goal, ratio(theirs, two))
    run.report.table("a micro-batch, us", ["size", *found[0]], rows)


def measure_pipepar(options: Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of a micro-batch; on one rank also of the bare modules. *Collective.*"""
    comm = MPI.COMM_WORLD

    def seconds(load: Load, _: int) -> dict[str, float]:
        x = load.part(0)
        model = nn.Sequential(load.work, load.work)
        with Pipeline(
            model,
            example_args=(x,),
            micro_batch=len(x),
            depth=options.depth or None,
            device="cpu",
        ) as pipe:
            sides: list[Side] = [StreamSide(comm, load, pipe)]
            if comm.size == 1:
                sides.append(ModulesSide(comm, load, model))
            return seconds_each(sides, _PASSES)

    return _by_side_and_size(seconds)


def measure_torch(options: Namespace) -> dict[str, dict[str, float]]:
    """Return the seconds of a micro-batch of torch, with and without the merge of the outputs.

    *Collective*, two ranks.
    """
    comm = MPI.COMM_WORLD
    join_gloo(comm, "127.0.0.1", "lo")
    found = _by_side_and_size(
        lambda load, step: seconds_each(
            [GpipeSide(comm, load, step, merge) for merge in (True, False)], _PASSES
        )
    )
    leave_gloo()
    return found


def _by_side_and_size(
    seconds_of: Callable[[Load, int], dict[str, float]],
) -> dict[str, dict[str, float]]:
    """Measure the loads of all sizes. *Collective.*"""
    found: dict[str, dict[str, float]] = {}
    for size, shape in _SHAPES.items():
        noise = torch.Generator().manual_seed(0)
        parts = tuple(torch.randn(shape, generator=noise) for _ in range(_RING))
        load = Load(parts, _MICROBATCHES[size], AddZero())
        for name, seconds in seconds_of(load, _STEPS[size]).items():
            found.setdefault(name, {})[size] = seconds
    return found


BENCHMARK: Final = Benchmark(
    question="what does a micro-batch cost through the Python API?",
    duration="3 minutes",
    measure=measure,
    jobs={"pipepar": measure_pipepar, "torch": measure_torch},
    options=(
        Option("repetitions", 5, "repetitions of each side"),
        Option("depth", 0, "depth of the channels; 0 is the choice of pipepar"),
    ),
    goals=tuple(goal for size in _SHAPES for goal in (_MODULES[size], *_TORCH[size])),
)
