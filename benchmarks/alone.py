"""The bound: the same computing without any transfer, as one more side of the comparison."""

from __future__ import annotations

import time
from array import array

from mpi4py import MPI

from benchmarks.load import Load


class AloneSide:
    """What a perfect pipeline would take, from both ranks computing for themselves.

    They do so at the same time, as in the pipeline, so that what they cost each other by sharing a
    machine is in the bound as well.

    Args:
        comm: both ranks.
        load: what would be streamed.
    """

    name = "bound, no transfer"

    def __init__(self, comm: MPI.Intracomm, load: Load) -> None:
        self.microbatches = load.microbatches
        self.slowest: list[float] = []
        """For each run, seconds of one micro-batch on the slower rank."""
        self._comm, self._load = comm, load

    def check(self) -> None:
        """Warm up; see `peers.Side.check`."""
        for index in range(min(20, self.microbatches)):
            self._load.work(self._load.part(index))

    def run(self) -> float:
        """See `peers.Side.run`; sum(t) + (M - 1) max(t) of the ranks' times t."""
        self._comm.Barrier()
        begin = time.perf_counter()
        for index in range(self.microbatches):
            self._load.work(self._load.part(index))
        own = array("d", [(time.perf_counter() - begin) / self.microbatches])
        every = array("d", bytes(8 * self._comm.size))
        self._comm.Allgather(own, every)
        self.slowest.append(max(every))
        return sum(every) + (self.microbatches - 1) * max(every)
