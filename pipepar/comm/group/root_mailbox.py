"""Numbers that any rank can send to the root at any time."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


class RootMailbox:
    """Sends positive ints from any rank to the root; 0 means none. Create it with `World.mailbox`.

    Args:
        comm: a communicator that nothing else uses; None in a world of one rank.
        root: the rank that receives.
    """

    def __init__(self, comm: MPI.Intracomm | None, root: int) -> None:
        self._comm = comm
        self._root = root
        self._sent = 0
        self._received = 0
        self._closed = False
        self._lock = threading.Lock()

    def send(self, number: int) -> None:
        """Send a number to the root. Any thread may call it.

        Does nothing after `close` or in a world of one rank.
        """
        with self._lock:
            if self._comm is not None and not self._closed:
                self._comm.Send(array("q", [number]), self._root)
                self._sent += 1

    def receive(self) -> int:
        """Return, on the root, the next number; 0 if none; 0 on other ranks. Does not wait."""
        if self._comm is None or not self._comm.Iprobe():
            return 0
        return self._receive_one()

    def close(self) -> None:
        """Close the mailbox. *Collective.*

        The root drops all numbers not yet received; then free the communicator. Later calls do
        nothing.
        """
        if self._comm is None:
            return
        with self._lock:
            self._closed = True
        counts = array("q", bytes(8 * self._comm.size))
        self._comm.Allgather(array("q", [self._sent]), counts)
        while self._comm.rank == self._root and self._received < sum(counts):
            self._receive_one()
        self._comm.Free()
        self._comm = None

    def _receive_one(self) -> int:
        assert self._comm is not None
        number = array("q", [0])
        self._comm.Recv(number)
        self._received += 1
        return number[0]
