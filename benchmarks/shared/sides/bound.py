"""The bound of a comparison: the same computation without any transfer."""

from __future__ import annotations

import time
from array import array

from mpi4py import MPI

from benchmarks.shared.sides.load import Load
from benchmarks.shared.sides.side import PREPARATION


class BoundSide:
    """The time of a perfect pipeline, from computing on both ranks without transfers.

    Both ranks compute at the same time, as in the pipeline: if they slow each other down because
    they share a machine, the bound contains that too.

    Args:
        comm: both ranks.
        load: the load to compute.
    """

    name = "bound, no transfer"

    def __init__(self, comm: MPI.Intracomm, load: Load) -> None:
        self.microbatches = load.microbatches
        self.slowest: list[float] = []
        """For each run, the seconds of one micro-batch on the slower rank."""
        self._comm, self._load = comm, load

    def check(self) -> None:
        """Warm up; see `Side.check`."""
        for index in range(min(PREPARATION, self.microbatches)):
            self._load.work(self._load.part(index))

    def run(self) -> float:
        """Return sum(t) + (M - 1) max(t) for the times t of the ranks; see `Side.run`."""
        self._comm.Barrier()
        begin = time.perf_counter()
        for index in range(self.microbatches):
            self._load.work(self._load.part(index))
        own = array("d", [(time.perf_counter() - begin) / self.microbatches])
        every = array("d", bytes(8 * self._comm.size))
        self._comm.Allgather(own, every)
        self.slowest.append(max(every))
        return sum(every) + (self.microbatches - 1) * max(every)
