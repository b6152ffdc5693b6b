"""Ranks that communicate: who they are, and what they agree on."""

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
        comm: a communicator of these ranks alone; None for a group of one, which needs no MPI.
        waiting: a context around every wait for other ranks.

    Attributes:
        rank: this process, 0-based.
        size: number of ranks.
        host: name of this process's machine.
        hosts: for each rank, by rank, the name of its machine.
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
        """The rank whose text `broadcast` gives to all, and which decides where one must."""
        return ROOT

    @property
    def is_root(self) -> bool:
        """Whether this is that rank."""
        return self.rank == ROOT

    @property
    def others(self) -> list[int]:
        """All ranks but the root."""
        return [rank for rank in range(self.size) if rank != ROOT]

    def broadcast(self, text: str) -> str:
        """The root's text, on every rank. *Collective.*"""
        if self._comm is None:
            return text
        with self._waiting():
            length = bytearray(len(text.encode()).to_bytes(8, "little"))
            self._comm.Bcast(length)
            data = bytearray(text.encode() if self.is_root else int.from_bytes(length, "little"))
            self._comm.Bcast(data)
        return data.decode()

    def all_gather(self, text: str) -> list[str]:
        """Every rank's text, by rank, on every rank. *Collective.*"""
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
        """Every rank's text, by rank, on rank `root`; None on the others. *Collective.*"""
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
        """Check that every rank has come to the same result. *Collective.*

        Args:
            results: the kind of result.
            digest: of this rank's result.

        Raises:
            PlanError: on every rank, naming the ranks that differ from rank 0.
        """
        digests = self.all_gather(digest)
        other = [rank for rank, found in enumerate(digests) if found != digests[0]]
        if other:
            raise PlanError(
                f"rank 0 and {_ranks(other)} have made different {results}: give every rank the "
                "same model, inputs and versions of torch, transformers and pipepar"
            )

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every rank, and go on only if it went well on all. *Collective.*

        So a problem that every rank runs into is raised once, by the lowest rank that has it.

        Raises:
            Exception: this rank's own problem, as it was.
            PeerError: on the other ranks, naming the rank that has it.
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
    """Texts that lie one after another in memory."""
    ends = itertools.accumulate(lengths)
    return [gathered[end - n : end].decode() for end, n in zip(ends, lengths, strict=True)]


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
