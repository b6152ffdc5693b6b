"""The ranks of a job: who they are, what they agree on, how they are connected, how they end.

Importing this module starts nothing. MPI is initialised by `World.start`, and not even then in a
process that no launcher started: a world of one needs no MPI at all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

from pipepar.comm.bell import Bell
from pipepar.comm.channel import Receiver, Sender
from pipepar.comm.launcher import launched, refusal, torchrun_below_a_rank
from pipepar.comm.link import Link
from pipepar.comm.vigil import Vigil
from pipepar.errors import PeerError, PipeparError, PlanError

if TYPE_CHECKING:
    from mpi4py import MPI

    from pipepar.comm.communicators import Communicators, Pair
    from pipepar.comm.gpu import Gpu
    from pipepar.comm.gpu_channel import Courier, Watch
    from pipepar.comm.native._progress import Engine

T = TypeVar("T")

# Seconds between two looks of the progress engine. Waking up costs a computing core 25 us, most
# of it in the kernel and the caches: half a per cent. A network's buffers bridge the gap; see
# benchmarks/README.md.
PROGRESS_PERIOD: Final = 5e-3
# A job that cannot even abort in order is ended all the same.
_ABORT_SECONDS: Final = 3.0


class World:
    """All ranks of the job, as seen by one of them. Made by `World.start`.

    Attributes:
        rank: this process, 0-based.
        size: number of ranks.
        host: name of this process's machine.
        hosts: for each rank, by rank, the name of its machine.
        cores: for each rank on this machine, by rank, the cores it is bound to.
        vigil: what keeps watch over the ranks, once it has begun.
    """

    def __init__(
        self, comm: MPI.Intracomm | None, progress_period: float = PROGRESS_PERIOD
    ) -> None:
        self._comm = comm
        self._progress_period = progress_period
        self._engine: Engine | None = None
        self._next_tag = 0
        self._communicators: list[Communicators] = []
        self.vigil = Vigil()
        self.rank = comm.rank if comm else 0
        self.size = comm.size if comm else 1
        self.host = platform.node()
        self.hosts: list[str] = self.all_gather(self.host)
        self.cores = self._gather_cores()

    @classmethod
    def start(cls, progress_period: float = PROGRESS_PERIOD) -> World:
        """Join the world that the launcher started. *Collective.*

        Args:
            progress_period: seconds between two looks of the progress engine.

        Raises:
            PipeparError: the launcher started several ranks that MPI does not know of, as torchrun
                does; or the MPI library does not support threads.
        """
        if not launched() and "mpi4py.MPI" not in sys.modules:
            _refuse(refusal())
            return cls(None, progress_period)
        _refuse(torchrun_below_a_rank())
        launcher = os.getppid()
        from mpi4py import MPI

        if launched():
            from pipepar.comm.orphan import end_with_launcher

            end_with_launcher(launcher)
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise PipeparError(
                f"MPI runs at thread level {MPI.Query_thread()}, pipepar needs MPI_THREAD_MULTIPLE "
                f"({MPI.THREAD_MULTIPLE}): leave mpi4py.rc.thread_level alone, or use an MPI "
                "library built with thread support"
            )
        if MPI.COMM_WORLD.size == 1:
            _refuse(refusal(MPI.Get_library_version().splitlines()[0].split(",")[0].strip()))
        return cls(MPI.COMM_WORLD.Dup(), progress_period)

    def broadcast(self, text: str) -> str:
        """Rank 0's text, on every rank. *Collective.*"""
        if self._comm is None:
            return text
        with self.vigil.waiting():
            length = bytearray(len(text.encode()).to_bytes(8, "little"))
            self._comm.Bcast(length)
            data = bytearray(text.encode() if self.rank == 0 else int.from_bytes(length, "little"))
            self._comm.Bcast(data)
        return data.decode()

    def all_gather(self, text: str) -> list[str]:
        """Every rank's text, by rank, on every rank. *Collective.*"""
        if self._comm is None:
            return [text]
        data = text.encode()
        lengths = array("q", bytes(8 * self.size))
        with self.vigil.waiting():
            self._comm.Allgather(array("q", [len(data)]), lengths)
            gathered = bytearray(sum(lengths))
            self._comm.Allgatherv(data, [gathered, lengths.tolist()])
        ends = list(itertools.accumulate(lengths))
        return [gathered[end - n : end].decode() for end, n in zip(ends, lengths, strict=True)]

    def agree(self, what: str, digest: str) -> None:
        """Check that every rank has come to the same result. *Collective.*

        Raises:
            PlanError: on every rank, naming the ranks that differ from rank 0.
        """
        digests = self.all_gather(digest)
        other = [rank for rank, found in enumerate(digests) if found != digests[0]]
        if other:
            raise PlanError(
                f"rank 0 and {_ranks(other)} have made different {what}: give every rank the same "
                "model, inputs and versions of torch, transformers and pipepar"
            )

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every rank, and go on only if it went well on all. *Collective.*

        So a problem that every rank runs into is told once, by the lowest rank that has it.

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

    def bind(self, cores: Iterable[int] | None) -> None:
        """Keep this rank's threads to some of its cores, and tell the others. *Collective.*

        A thread that is bound to a part of them already stays there; threads started later follow
        the one that starts them. `cores` then says what has become of every rank.

        Args:
            cores: numbers of logical CPUs, at least one; None to leave this rank as it is.
        """
        if cores is not None:
            wanted = set(cores)
            for thread in map(int, os.listdir("/proc/self/task")):
                # One that has just ended, or a system that does not allow it: slower, not wrong.
                with contextlib.suppress(OSError):
                    bound = os.sched_getaffinity(thread)
                    os.sched_setaffinity(thread, bound & wanted or wanted)
        self.cores = self._gather_cores()

    def connect(
        self, links: Iterable[Link], gpu: Gpu | None = None, watch: Watch | None = None
    ) -> tuple[dict[int, Receiver], dict[int, Sender]]:
        """Make this rank's ends of all channels. *Collective*; the same links on every rank.

        Args:
            links: what to connect.
            gpu: this rank's, where a link is from or to it.
            watch: is told of every transfer between two GPUs; None to take no times of them.

        Returns:
            The receivers by the rank they come from, the senders by the rank they go to.

        Raises:
            WireError: NCCL cannot connect two GPUs.
        """
        receivers: dict[int, Receiver] = {}
        senders: dict[int, Sender] = {}
        if self._comm is None:
            return receivers, senders
        from pipepar.comm.edge import Edge
        from pipepar.comm.ends import Ends
        from pipepar.comm.memory import keep_freed_memory

        keep_freed_memory()
        links = list(links)
        couriers = self._couriers(links, gpu)
        ends = Ends(self._start_engine(), gpu, couriers, watch)
        waited = self.vigil.waited
        for link in links:
            if link.consumer == self.rank:
                edge = Edge(self._comm, link.producer, self._next_tag, link.depth, waited)
                receivers[link.producer] = ends.receiver(link, edge)
            if link.producer == self.rank:
                edge = Edge(self._comm, link.consumer, self._next_tag, link.depth, waited)
                senders[link.consumer] = ends.sender(link, edge)
            self._next_tag += Edge.tags(link.depth)
        return receivers, senders

    def bell(self) -> Bell:
        """A way for any rank to tell rank 0 a number at any time. *Collective.*"""
        return Bell(self._comm and self._comm.Dup())

    def _couriers(self, links: Sequence[Link], gpu: Gpu | None) -> Mapping[Pair, Courier]:
        pairs = [(link.producer, link.consumer) for link in links if link.by_nccl]
        if not pairs:
            return {}
        from pipepar.comm.communicators import Communicators

        started = Communicators.start(self, pairs, gpu)
        self._communicators.append(started)
        return started

    def close(self) -> None:
        """Let go of MPI; every channel must be closed. *Collective*, may be called twice."""
        if self.vigil.kept:
            self.all_gather("")  # nobody misses one that has done its part
            self.vigil.close()
        for communicators in self._communicators:
            communicators.close()
        if self._engine:
            self._engine.close()
            self._engine = None
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def abort(self, report: str) -> NoReturn:
        """Print a report and end every rank of the job, at once and with exit status 1. *Local.*

        An empty report stands for a problem that another rank will tell: wait to be ended by it.
        """
        sys.stdout.flush()
        if self._comm is None:
            sys.stderr.write(f"{report}\n")
            sys.stderr.flush()
            os._exit(1)
        threading.Thread(target=_exit_after, args=(_ABORT_SECONDS,), daemon=True).start()
        if not report:
            time.sleep(_ABORT_SECONDS)
        sys.stderr.write(f"\n{report}\n")
        sys.stderr.flush()
        time.sleep(0.1)  # the launcher forwards our stderr; let it have the report first
        for communicators in self._communicators:
            communicators.abort()
        self._comm.Abort(1)
        os._exit(1)

    def _gather_cores(self) -> dict[int, list[int]]:
        gathered = self.all_gather(json.dumps(sorted(os.sched_getaffinity(0))))
        places = enumerate(zip(self.hosts, gathered, strict=True))
        return {rank: json.loads(text) for rank, (host, text) in places if host == self.host}

    def _start_engine(self) -> Engine:
        if self._engine is None:
            from mpi4py import MPI

            from pipepar.comm.native._progress import Engine

            self._engine = Engine(MPI.__file__, self._progress_period)
        return self._engine


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def _refuse(reason: str | None) -> None:
    """Do not run as many jobs of one rank what was meant as one job of many."""
    if reason:
        raise PipeparError(reason)
