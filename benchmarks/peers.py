"""The sides of a comparison: ways to stream the same load from rank 0 to rank 1."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

import torch
from mpi4py import MPI

from benchmarks.load import Load, timed
from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.engine.loop import Outlet, Program, arrivals, run
from pipepar.microbatch import MicroBatch, Step, Value
from pipepar.trace import Tracer

# Micro-batches that show a fresh channel the sizes to come; it is not measured while it learns.
_WARM_UP: Final = 20


class Side(Protocol):
    """One way to stream a load."""

    name: str
    microbatches: int
    """How many a pass streams."""

    def check(self) -> None:
        """Stream once and see that the results are right; warms up too. *Collective.*"""

    def run(self) -> float:
        """Seconds of one pass, from a common start to the end of the last rank. *Collective.*"""


def alternate(sides: Sequence[Side], repetitions: int) -> Iterator[list[float]]:
    """Run the sides in turn, again and again; yields the seconds of one turn. *Collective.*"""
    for side in sides:
        side.check()
    for _ in range(repetitions):
        yield [side.run() for side in sides]


class PipeparSide:
    """The runtime's own loop over its own channels.

    The channel is opened for each pass and closed after it: an open one has receives posted, which
    the progress engine looks after, and the other sides should have the cores to themselves.

    Args:
        comm: both ranks.
        world: the same ranks.
        load: what to stream.
        depth: micro-batches under way on each end of the channel.
    """

    name = "pipepar"

    def __init__(self, comm: MPI.Intracomm, world: World, load: Load, depth: int) -> None:
        self.microbatches = load.microbatches
        self._comm, self._world, self._load = comm, world, load
        self._link = Link(0, 1, depth)
        self.slowest: list[float] = []
        """For each run, seconds that the slower rank computed for one micro-batch."""

    def check(self) -> None:
        """See `Side.check`."""
        outputs: list[torch.Tensor] = []
        with _Stage(self._world, self._link, self._load) as stage:
            stage.stream(max(2 * len(self._load.parts), _WARM_UP), outputs)
        if self._world.rank == 1:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `Side.run`."""
        with _Stage(self._world, self._link, self._load) as stage:
            stage.stream(min(_WARM_UP, self.microbatches))
            before = stage.computed
            seconds = timed(self._comm, lambda: stage.stream(self.microbatches))
            own = array("d", [(stage.computed - before) / self.microbatches])
            self._comm.Allreduce(MPI.IN_PLACE, own, MPI.MAX)
            self.slowest.append(own[0])
            return seconds


class _Stage:
    """One rank's end of a channel, and the loop that feeds or drains it."""

    def __init__(self, world: World, link: Link, load: Load) -> None:
        receivers, senders = world.connect([link])
        self._inlets = list(receivers.values())
        self._outlets = [Outlet(("y",), (1,), sender) for sender in senders.values()]
        self._load = load
        self._tracer = Tracer(world.rank)
        self._programs = [Program((0,), self._compute)]

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # else the job is about to be ended, and a close might wait for ever
            for outlet in self._outlets:
                outlet.channel.close()
            for inlet in self._inlets:
                inlet.close()

    @property
    def computed(self) -> float:
        return self._tracer.totals["compute"].seconds

    def stream(self, count: int, outputs: list[torch.Tensor] | None = None) -> None:
        source = arrivals(self._inlets, self._tracer) if self._inlets else self._feed(count)
        for microbatch in run(self._programs, source, self._outlets, self._tracer):
            _, y = microbatch.values
            if outputs is not None and isinstance(y, torch.Tensor):
                outputs.append(y)

    def _feed(self, count: int) -> Iterable[MicroBatch]:
        return (MicroBatch(index, (self._load.part(index),)) for index in range(count))

    def _compute(self, values: tuple[Value, ...], step: Step) -> tuple[Value, ...]:
        return (self._load.work(*values),)
