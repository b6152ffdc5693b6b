"""One MPI channel's place among all those of a job, and the requests on it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mpi4py import MPI

from pipepar.comm.memory import spans
from pipepar.comm.native._progress import Lane
from pipepar.errors import WireError

# A native wait returns to Python this often, so that signals are handled.
_WAIT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Edge:
    """The place of one channel among all those of a job, as seen from one of its ends."""

    comm: MPI.Intracomm
    """The communicator that all channels share; each has tags of its own."""
    peer: int
    """Rank at the other end."""
    tag: int
    """First of the channel's tags; it owns `tags(depth)` of them."""
    depth: int
    """How many micro-batches each end may have under way, at least 1."""

    @staticmethod
    def tags(depth: int) -> int:
        """Tags a channel needs: header, spec, and one for each generation that may be under way."""
        return 2 + 2 * (depth + 1)

    @property
    def header_tag(self) -> int:
        """Tag of the headers."""
        return self.tag

    @property
    def spec_tag(self) -> int:
        """Tag of the specs."""
        return self.tag + 1

    def payload_tag(self, generation: int) -> int:
        """Tag of the tensors; never that of another generation which may still be under way."""
        return self.tag + 2 + generation % (2 * (self.depth + 1))


def mpi_buffers(address: int, nbytes: int) -> Iterator[list[object]]:
    """MPI buffer specifications for a tensor's memory, a piece each. *Local.*"""
    for begin, size in spans(address, nbytes):
        yield [MPI.buffer.fromaddress(begin, size), MPI.BYTE]


def wait_for(lane: Lane, count: int, edge: Edge, what: str) -> None:
    """Wait until a lane has completed that many tickets. *Local.*

    Raises:
        WireError: MPI reports an error, most often that the peer is gone.
    """
    while not lane.wait(count, _WAIT_SECONDS):
        pass
    if lane.error:
        raise WireError(
            f"{what} rank {edge.peer} failed: {MPI.Get_error_string(lane.error)}; "
            "look for the first error of that rank"
        )


def cancel(request: MPI.Request) -> None:
    """Take a receive back that nothing will match. *Local.*"""
    if request != MPI.REQUEST_NULL:
        request.Cancel()
        request.Wait()


def leak(memory: object) -> None:
    """Never free what MPI may still read or write, however this process goes on. *Local.*"""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
