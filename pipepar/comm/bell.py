"""Any rank rings, rank 0 hears: what only one rank was told reaches the one that acts on it."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


class Bell:
    """A number, at least 1, from any rank to rank 0, at any time. Made by `World.bell`."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        """Take a communicator of one's own; None in a world of one."""
        self._comm = comm
        self._rung = 0
        self._heard = 0
        self._closed = False
        self._lock = threading.Lock()

    def ring(self, number: int) -> None:
        """Send a number to rank 0, from any thread. *Local.*"""
        with self._lock:
            if self._comm is not None and not self._closed:
                self._comm.Send(array("q", [number]), 0)
                self._rung += 1

    def heard(self) -> int:
        """On rank 0, a number that has arrived; 0 if there is none. *Local*, waits for nothing."""
        if self._comm is None or not self._comm.Iprobe():
            return 0
        return self._take()

    def close(self) -> None:
        """Let go, with nothing under way. *Collective.*"""
        if self._comm is None:
            return
        with self._lock:
            self._closed = True
        counts = array("q", bytes(8 * self._comm.size))
        self._comm.Allgather(array("q", [self._rung]), counts)
        while self._comm.rank == 0 and self._heard < sum(counts):
            self._take()
        self._comm.Free()
        self._comm = None

    def _take(self) -> int:
        assert self._comm is not None
        number = array("q", [0])
        self._comm.Recv(number)
        self._heard += 1
        return number[0]
