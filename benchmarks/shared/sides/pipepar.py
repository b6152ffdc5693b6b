"""The same stream through the channels and the loop of pipepar."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import torch
from mpi4py import MPI

from benchmarks.shared.sides.load import Load, timed
from benchmarks.shared.sides.side import PREPARATION
from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.engine.loop import Outlet, Program, arrivals, run
from pipepar.microbatch import MicroBatch, Step, Value
from pipepar.trace import Tracer


class PipeparSide:
    """The loop of a stage over a channel of pipepar.

    Each pass opens a channel and closes it. An open channel has posted receives, which the progress
    engine tests, and would take time from the other sides.

    Args:
        comm: both ranks.
        world: the same ranks.
        load: the load to stream.
        depth: the depth of the channel.
    """

    name = "pipepar"

    def __init__(self, comm: MPI.Intracomm, world: World, load: Load, depth: int) -> None:
        self.microbatches = load.microbatches
        self._comm, self._world, self._load = comm, world, load
        self._link = Link(0, 1, depth)
        self.slowest: list[float] = []
        """For each run, the compute seconds of one micro-batch on the slower rank."""

    def check(self) -> None:
        """See `Side.check`."""
        outputs: list[torch.Tensor] = []
        with _Stage(self._world, self._link, self._load) as stage:
            stage.stream(max(2 * len(self._load.parts), PREPARATION), outputs)
        if self._world.rank == 1:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `Side.run`."""
        with _Stage(self._world, self._link, self._load) as stage:
            stage.stream(min(PREPARATION, self.microbatches))
            before = stage.computed
            seconds = timed(self._comm, lambda: stage.stream(self.microbatches))
            own = array("d", [(stage.computed - before) / self.microbatches])
            self._comm.Allreduce(MPI.IN_PLACE, own, MPI.MAX)
            self.slowest.append(own[0])
            return seconds


class _Stage:
    """The end of a channel on one rank, and the loop that sends or receives."""

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
        if kind is None:  # after an error a close might wait for ever
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
