"""All ranks of a job: their start, channels, CPU cores, shutdown and abort.

Importing this module does not initialise MPI. `World.start` does, except in a process without a
launcher that has not imported mpi4py.MPI: it is a world of one rank and needs no MPI.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.comm.group.group import Group
from pipepar.comm.group.launcher import launch_problem, launched, torchrun_problem
from pipepar.comm.group.root_mailbox import RootMailbox
from pipepar.comm.liveness.heartbeat import Heartbeat
from pipepar.errors import PipeparError

if TYPE_CHECKING:
    from mpi4py import MPI

    from pipepar.comm.gpu.communicators import Communicators
    from pipepar.comm.gpu.cuda import Gpu
    from pipepar.comm.gpu.nccl_channel import P2PTransport, Watch
    from pipepar.comm.native._progress import Engine

# Seconds between two polls of the progress engine. Each wake-up takes 25 us from a core that
# computes, 0.5 %, most of it in the kernel and in cache misses. Network buffers cover the time
# between polls; see benchmarks/README.md.
PROGRESS_PERIOD: Final = 5e-3
# Time limit of an orderly abort; after that the process exits by itself.
_ABORT_SECONDS: Final = 3.0


class World(Group):
    """All ranks of the job, as seen by one of them. Create it with `World.start`.

    Attributes:
        cores: the logical CPUs of each rank on this host, by rank.
        heartbeat: the mutual monitoring of the ranks; does nothing until it is started.
    """

    def __init__(
        self, comm: MPI.Intracomm | None, progress_period: float = PROGRESS_PERIOD
    ) -> None:
        self.heartbeat = Heartbeat()
        super().__init__(comm, self.heartbeat.waiting)
        self._progress_period = progress_period
        self._engine: Engine | None = None
        self._next_tag = 0
        self._communicators: list[Communicators] = []
        self.cores = self._gather_cores()

    @classmethod
    def start(cls, progress_period: float = PROGRESS_PERIOD) -> World:
        """Initialise MPI if it is needed, and return the world of all ranks. *Collective.*

        Args:
            progress_period: seconds between two polls of the progress engine.

        Raises:
            PipeparError: the launcher started several processes that are not ranks of this MPI
                library, as torchrun does; or the library does not support threads.
        """
        if not launched() and "mpi4py.MPI" not in sys.modules:
            _raise_if(launch_problem())
            return cls(None, progress_period)
        _raise_if(torchrun_problem())
        launcher = os.getppid()
        from mpi4py import MPI

        if launched():
            from pipepar.comm.liveness.orphan import end_with_launcher

            end_with_launcher(launcher)
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise PipeparError(
                f"MPI runs at thread level {MPI.Query_thread()}, pipepar needs MPI_THREAD_MULTIPLE "
                f"({MPI.THREAD_MULTIPLE}): do not set mpi4py.rc.thread_level, or use an MPI "
                "library built with thread support"
            )
        if MPI.COMM_WORLD.size == 1:
            library = MPI.Get_library_version().splitlines()[0].split(",")[0].strip()
            _raise_if(launch_problem(library))
        return cls(MPI.COMM_WORLD.Dup(), progress_period)

    def bind(self, cores: Iterable[int] | None) -> None:
        """Bind the threads of this rank to some cores, and update `cores`. *Collective.*

        Each thread keeps those of its present cores that are among the given ones. If none are, it
        gets all of the given ones. Threads that are started later inherit their cores.

        Args:
            cores: at least one logical CPU; None to change nothing on this rank.
        """
        if cores is not None:
            wanted = set(cores)
            for thread in map(int, os.listdir("/proc/self/task")):
                # The thread may have ended, or the system may forbid it. That costs only speed.
                with contextlib.suppress(OSError):
                    bound = os.sched_getaffinity(thread)
                    os.sched_setaffinity(thread, bound & wanted or wanted)
        self.cores = self._gather_cores()

    def connect(
        self, links: Sequence[Link], gpu: Gpu | None = None, watch: Watch | None = None
    ) -> tuple[dict[int, Receiver], dict[int, Sender]]:
        """Create the ends of all channels that this rank has. *Collective.*

        Args:
            links: one for each channel, the same on every rank; the position is the id of the
                channel. Several links may connect the same two ranks.
            gpu: the GPU of this rank; None if no link of this rank ends at a GPU.
            watch: called with every transfer between two GPUs and its times; None to skip timing.

        Returns:
            The receivers and the senders of this rank, by channel id.

        Raises:
            WireError: NCCL cannot connect two GPUs.
        """
        receivers: dict[int, Receiver] = {}
        senders: dict[int, Sender] = {}
        if self._comm is None:
            return receivers, senders
        from pipepar.comm.channel_factory import ChannelFactory
        from pipepar.comm.channels.memory import keep_freed_memory
        from pipepar.comm.channels.mpi_endpoint import MpiEndpoint

        keep_freed_memory()
        transports = self._transports(links, gpu)
        factory = ChannelFactory(self._start_engine(), gpu, watch)
        waited = self.heartbeat.waited
        for channel, link in enumerate(links):
            endpoint_to = partial(MpiEndpoint, self._comm, tag=self._next_tag, depth=link.depth)
            if link.consumer == self.rank:
                endpoint = endpoint_to(peer=link.producer, waited=waited)
                receivers[channel] = factory.receiver(link, endpoint, transports.get(channel))
            if link.producer == self.rank:
                endpoint = endpoint_to(peer=link.consumer, waited=waited)
                senders[channel] = factory.sender(link, endpoint, transports.get(channel))
            self._next_tag += MpiEndpoint.tags(link.depth)
        return receivers, senders

    def mailbox(self) -> RootMailbox:
        """Create a mailbox for numbers from any rank to the root. *Collective.*"""
        return RootMailbox(self._comm and self._comm.Dup(), self.root)

    def _transports(self, links: Sequence[Link], gpu: Gpu | None) -> Mapping[int, P2PTransport]:
        pairs = {
            channel: (link.producer, link.consumer)
            for channel, link in enumerate(links)
            if link.by_nccl
        }
        if not pairs:
            return {}
        from pipepar.comm.gpu.communicators import Communicators

        started = Communicators.start(self, pairs, gpu, self.abort)
        self._communicators.append(started)
        return started

    def close(self) -> None:
        """Stop the heartbeat and the progress engine, and free the MPI communicator. *Collective.*

        Every channel must be closed before: the last channel of an NCCL communicator frees it. May
        be called twice.
        """
        if self.heartbeat.is_running:
            self.all_gather("")  # a barrier: until then other ranks expect beats of this one
            self.heartbeat.close()
        for communicators in self._communicators:
            communicators.close()
        if self._engine:
            self._engine.close()
            self._engine = None
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def abort(self, report: str) -> NoReturn:
        """Print a report and end every rank of the job with exit status 1.

        Args:
            report: the text to print; empty if another rank reports the problem. This rank then
                waits, for a limited time, until that rank has ended the job.
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
        time.sleep(0.1)  # time for the launcher to forward the report
        for communicators in self._communicators:
            communicators.abort()
        self._comm.Abort(1)
        os._exit(1)

    def _gather_cores(self) -> dict[int, list[int]]:
        gathered = self.all_gather(json.dumps(sorted(os.sched_getaffinity(0))))
        by_rank = enumerate(zip(self.hosts, gathered, strict=True))
        return {rank: json.loads(text) for rank, (host, text) in by_rank if host == self.host}

    def _start_engine(self) -> Engine:
        if self._engine is None:
            from mpi4py import MPI

            from pipepar.comm.native._progress import Engine

            self._engine = Engine(MPI.__file__, self._progress_period)
        return self._engine


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def _raise_if(problem: str | None) -> None:
    """Raise an error with this text, if there is one."""
    if problem:
        raise PipeparError(problem)
