"""A mailbox of the root: any rank can send it a number at any time."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


class RootMailbox:
    """Numbers, at least 1, from any rank to the root. Made by `World.mailbox`.

    Args:
        comm: a communicator for this mailbox alone; None in a world of one.
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
        """Send a number to the root, from any thread."""
        with self._lock:
            if self._comm is not None and not self._closed:
                self._comm.Send(array("q", [number]), self._root)
                self._sent += 1

    def receive(self) -> int:
        """On the root, a number that has arrived; 0 if there is none. Does not wait."""
        if self._comm is None or not self._comm.Iprobe():
            return 0
        return self._take()

    def close(self) -> None:
        """Close the mailbox once every number has arrived. *Collective.*"""
        if self._comm is None:
            return
        with self._lock:
            self._closed = True
        counts = array("q", bytes(8 * self._comm.size))
        self._comm.Allgather(array("q", [self._sent]), counts)
        while self._comm.rank == self._root and self._received < sum(counts):
            self._take()
        self._comm.Free()
        self._comm = None

    def _take(self) -> int:
        assert self._comm is not None
        number = array("q", [0])
        self._comm.Recv(number)
        self._received += 1
        return number[0]
