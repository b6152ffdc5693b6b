"""The cost of a micro-batch through `Pipeline.stream`, compared with the bare modules and torch.

Two layers that return x + 0, on one rank and on two. pipepar and torch run in separate jobs that
alternate, because pipepar tunes the allocator of its process. The bare modules run in the job of
pipepar on one rank.
"""

from __future__ import annotations

from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import ratio
from benchmarks.shared.run import Run
from benchmarks.shared.sides.load import Load, timed
from benchmarks.shared.sides.side import Side, seconds_each
from benchmarks.shared.sides.sizes import SIZES, SizeSeconds, TorchGoals, compare, gpipe_seconds
from pipepar.pipeline import Pipeline

_PASSES: Final = 5
_RING: Final = 8
_SHAPES: Final = {"256 B": (1, 64), "1 MiB": (4, 128, 512)}
_MODULES: Final = {size: Goal(f"{size}: one rank / bare modules", "at most", 5) for size in SIZES}
_TORCH: Final = TorchGoals("two ranks", {"256 B": 2.5, "1 MiB": 4.0})


class AddZero(nn.Module):
    """A cheap layer that returns new memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a copy of the input."""
        return x + 0


class StreamSide:
    """A long stream of batches of one micro-batch.

    Args:
        name: the name of the side.
        comm: all ranks.
        load: the load to stream.
        stream: takes batches and yields results, on rank 0 at least.
    """

    def __init__(
        self,
        name: str,
        comm: MPI.Intracomm,
        load: Load,
        stream: Callable[[Iterable[torch.Tensor]], Iterable[Any]],
    ) -> None:
        self.name, self.microbatches = name, load.microbatches
        self._comm, self._load, self._stream = comm, load, stream

    def check(self) -> None:
        """See `Side.check`."""
        outputs = list(self._stream(map(self._load.part, range(4 * _RING))))
        if self._comm.rank == 0:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `Side.run`."""
        batches = map(self._load.part, range(self.microbatches))
        return timed(self._comm, lambda: deque(self._stream(batches), maxlen=0))


def measure(run: Run) -> None:
    """Start the jobs in turn, and report the time of a micro-batch."""
    repetitions = run.options.repetitions
    run.report.note(f"two layers that return x + 0, {repetitions} repetitions; median (min..max)")
    jobs = [partial(run.job, "pipepar", ranks) for ranks in (1, 2)]
    found = compare(run, "a micro-batch, us", *jobs, partial(run.job, "torch"))
    for size, sides in found.items():
        one, bare, two, *theirs = sides.values()
        run.report.goal(_MODULES[size], ratio(one, bare))
        _TORCH.report(run, size, two, theirs)


def measure_pipepar(options: Namespace) -> SizeSeconds:
    """Return the seconds of a micro-batch; on one rank also of the bare modules. *Collective.*"""
    comm = MPI.COMM_WORLD
    name = f"pipepar, {comm.size} rank{'s' * (comm.size > 1)}"
    depth = options.depth or None
    found = {}
    for size in SIZES:
        load = _load(size)
        x = load.part(0)
        model = nn.Sequential(load.work, load.work)
        with Pipeline(
            model, example_args=(x,), micro_batch=len(x), depth=depth, device="cpu"
        ) as pipe:
            sides: list[Side] = [StreamSide(name, comm, load, pipe.stream)]
            if comm.size == 1:
                sides.append(StreamSide("bare modules", comm, load, partial(map, model)))
            found[size] = seconds_each(sides, _PASSES)
    return found


def measure_torch(options: Namespace) -> SizeSeconds:
    """Return the seconds of a micro-batch of torch, with and without the merge. *Collective.*"""
    return gpipe_seconds(_load, _PASSES)


def _load(size: str) -> Load:
    noise = torch.Generator().manual_seed(0)
    parts = tuple(torch.randn(_SHAPES[size], generator=noise) for _ in range(_RING))
    return Load(parts, SIZES[size], AddZero())


BENCHMARK: Final = Benchmark(
    question="what does a micro-batch cost through the Python API?",
    duration="3 minutes",
    measure=measure,
    jobs={"pipepar": measure_pipepar, "torch": measure_torch},
    options=(
        Option("repetitions", 5, "repetitions of each side"),
        Option("depth", 0, "depth of the channels; 0 for the choice of pipepar"),
    ),
    goals=tuple(goal for size in SIZES for goal in (_MODULES[size], *_TORCH.of[size])),
)
