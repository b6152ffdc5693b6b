"""A group of ranks and its collective calls."""

from __future__ import annotations

import itertools
import platform
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from pipepar.comm.group.launcher import ROOT
from pipepar.errors import PeerError, PlanError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


class Group:
    """Some ranks of the job, as seen by one of them.

    Args:
        comm: a communicator of exactly these ranks; None for a group of one, which needs no MPI.
        waiting: returns a context manager, which is entered during every wait for other ranks.

    Attributes:
        rank: the number of this process, 0-based.
        size: the number of ranks.
        host: the name of this rank's host.
        hosts: the name of each rank's host, by rank.
    """

    def __init__(
        self,
        comm: MPI.Intracomm | None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._comm = comm
        self._waiting = waiting
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1
        self.host = platform.node()
        self.hosts: list[str] = self.all_gather(self.host)

    @property
    def root(self) -> int:
        """The rank that `broadcast` sends from, and that makes decisions for all ranks."""
        return ROOT

    @property
    def is_root(self) -> bool:
        """Whether this rank is the root."""
        return self.rank == ROOT

    @property
    def others(self) -> list[int]:
        """All ranks except the root, in order."""
        return [rank for rank in range(self.size) if rank != ROOT]

    def broadcast(self, text: str) -> str:
        """Return the text of the root, on every rank. *Collective.*"""
        if self._comm is None:
            return text
        with self._waiting():
            length = bytearray(len(text.encode()).to_bytes(8, "little"))
            self._comm.Bcast(length)
            data = bytearray(text.encode() if self.is_root else int.from_bytes(length, "little"))
            self._comm.Bcast(data)
        return data.decode()

    def all_gather(self, text: str) -> list[str]:
        """Return the texts of all ranks, by rank, on every rank. *Collective.*"""
        if self._comm is None:
            return [text]
        data = text.encode()
        lengths = array("q", bytes(8 * self.size))
        with self._waiting():
            self._comm.Allgather(array("q", [len(data)]), lengths)
            gathered = bytearray(sum(lengths))
            self._comm.Allgatherv(data, [gathered, lengths.tolist()])
        return _texts(gathered, lengths)

    def gather(self, text: str, root: int) -> list[str] | None:
        """Return the texts of all ranks on rank `root`, None on the others. *Collective.*"""
        if self._comm is None:
            return [text]
        data = text.encode()
        lengths = array("q", bytes(8 * self.size)) if self.rank == root else None
        with self._waiting():
            self._comm.Gather(array("q", [len(data)]), lengths, root)
            if lengths is None:
                self._comm.Gatherv(data, None, root)
                return None
            gathered = bytearray(sum(lengths))
            self._comm.Gatherv(data, [gathered, lengths.tolist()], root)
        return _texts(gathered, lengths)

    def agree(self, results: Literal["graphs of the model", "plans"], digest: str) -> None:
        """Check that all ranks have made the same thing. *Collective.*

        Args:
            results: what they made, as the error names it.
            digest: a digest of what this rank made.

        Raises:
            PlanError: digests differ. Every rank raises it, with the ranks that differ from rank 0.
        """
        digests = self.all_gather(digest)
        differing = [rank for rank, found in enumerate(digests) if found != digests[0]]
        if differing:
            ranks = f"rank{'s' * (len(differing) > 1)} {', '.join(map(str, differing))}"
            raise PlanError(
                f"rank 0 and {ranks} have made different {results}: give every rank the "
                "same model, inputs and versions of torch, transformers and pipepar"
            )

    def together(self, action: Callable[[], T]) -> T:
        """Call an action on every rank, and return its result if no rank failed. *Collective.*

        If several ranks fail, only the lowest of them raises its exception. So a problem that all
        ranks have is reported once.

        Args:
            action: called once on each rank.

        Raises:
            Exception: what `action` raised, on the lowest rank that failed.
            PeerError: on all other ranks, with that rank, its host and its message.
        """
        problem, result = "", None
        try:
            result = action()
        except Exception as error:
            failure = error
            problem = str(error) or type(error).__name__
        problems = self.all_gather(problem)
        first = next((rank for rank, text in enumerate(problems) if text), None)
        if first is None:
            return cast("T", result)
        if first == self.rank:
            raise failure
        raise PeerError(f"rank {first} on {self.hosts[first]}: {problems[first]}")


def _texts(gathered: bytearray, lengths: Sequence[int]) -> list[str]:
    """Split concatenated UTF-8 texts, given the bytes of each, and decode them."""
    ends = itertools.accumulate(lengths)
    return [gathered[end - n : end].decode() for end, n in zip(ends, lengths, strict=True)]
