"""Numbers that any rank can send to the root at any time."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


class RootMailbox:
    """A mailbox of the root for numbers of at least 1. Create it with `World.mailbox`.

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
        """Send a number to the root; does nothing after `close`. Any thread may call it."""
        with self._lock:
            if self._comm is not None and not self._closed:
                self._comm.Send(array("q", [number]), self._root)
                self._sent += 1

    def receive(self) -> int:
        """Return the next number that has arrived at this rank, 0 if none has. Does not wait."""
        if self._comm is None or not self._comm.Iprobe():
            return 0
        return self._receive_one()

    def close(self) -> None:
        """Receive all numbers that were sent, drop them, and free the mailbox. *Collective.*"""
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
