"""The same stream in plain mpi4py: a double-buffered loop of Isend and Irecv."""

from __future__ import annotations

from typing import Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.shared.sides.load import Load, timed

_TAG: Final = 7


class BareSide:
    """A double-buffered loop for one model and one size, without header, spec or back-pressure.

    Args:
        comm: both ranks.
        load: the load to stream.
    """

    name = "plain mpi4py"

    def __init__(self, comm: MPI.Intracomm, load: Load) -> None:
        self.microbatches = load.microbatches
        self._comm, self._load = comm, load
        self._buffers = [torch.empty_like(load.parts[0]) for _ in range(2)]
        self._specs = [_memory(buffer) for buffer in self._buffers]

    def check(self) -> None:
        """See `Side.check`."""
        outputs: list[torch.Tensor] = []
        self._pass(2 * len(self._load.parts), outputs)
        if self._comm.rank == 1:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `Side.run`."""
        return timed(self._comm, lambda: self._pass(self.microbatches))

    def _pass(self, count: int, outputs: list[torch.Tensor] | None = None) -> None:
        if self._comm.rank == 1:
            self._drain(count, outputs)
        elif isinstance(self._load.work, nn.Identity):
            self._feed_ready(count)
        else:
            self._feed(count)

    def _feed_ready(self, count: int) -> None:
        """Send the inputs themselves: the smallest possible cost of a hop."""
        ring = [_memory(part) for part in self._load.parts]
        size, comm = len(ring), self._comm
        requests = [MPI.REQUEST_NULL, MPI.REQUEST_NULL]
        for index in range(count):
            requests[index % 2].Wait()
            requests[index % 2] = comm.Isend(ring[index % size], 1, _TAG)
        MPI.Request.Waitall(requests)

    def _feed(self, count: int) -> None:
        pending: list[tuple[MPI.Request, torch.Tensor]] = []
        for index in range(count):
            output = self._load.work(self._load.part(index))
            if len(pending) == 2:
                pending[0][0].Wait()
                pending.pop(0)  # frees the memory, which the transfer needs until here
            request = self._comm.Isend(_memory(output), 1, _TAG)
            pending.append((request, output))
        for request, _ in pending:
            request.Wait()

    def _drain(self, count: int, outputs: list[torch.Tensor] | None) -> None:
        comm, work = self._comm, self._load.work
        identity = isinstance(work, nn.Identity)
        requests = [comm.Irecv(self._specs[0], 0, _TAG), MPI.REQUEST_NULL]
        for index in range(count):
            here, other = index % 2, (index + 1) % 2
            if index + 1 < count:
                requests[other] = comm.Irecv(self._specs[other], 0, _TAG)
            requests[here].Wait()
            output = self._buffers[here] if identity else work(self._buffers[here])
            if outputs is not None:
                outputs.append(output.clone())


def _memory(tensor: torch.Tensor) -> list[object]:
    return [MPI.buffer.fromaddress(tensor.data_ptr(), tensor.nbytes), MPI.BYTE]
