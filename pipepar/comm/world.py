"""The ranks of a job: who they are, what they agree on, how they are connected, how they end.

Importing this module starts nothing. MPI is initialised by `World.start`, and not even then in a
process that no launcher started: a world of one needs no MPI at all.
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
from pipepar.comm.group.launcher import launched, refusal, torchrun_below_a_rank
from pipepar.comm.group.root_mailbox import RootMailbox
from pipepar.comm.liveness.heartbeat import Heartbeat
from pipepar.errors import PipeparError

if TYPE_CHECKING:
    from mpi4py import MPI

    from pipepar.comm.gpu.communicators import Communicators
    from pipepar.comm.gpu.cuda import Gpu
    from pipepar.comm.gpu.nccl_channel import P2PTransport, Watch
    from pipepar.comm.native._progress import Engine

# Seconds between two looks of the progress engine. Waking up costs a computing core 25 us, most
# of it in the kernel and the caches: half a per cent. A network's buffers bridge the gap; see
# benchmarks/README.md.
PROGRESS_PERIOD: Final = 5e-3
# A job that cannot even abort in order is ended all the same.
_ABORT_SECONDS: Final = 3.0


class World(Group):
    """All ranks of the job, as seen by one of them. Made by `World.start`.

    Attributes:
        cores: for each rank on this machine, by rank, the cores it is bound to.
        heartbeat: what keeps watch over the ranks, once it has begun.
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
            from pipepar.comm.liveness.orphan import end_with_launcher

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
        self, links: Sequence[Link], gpu: Gpu | None = None, watch: Watch | None = None
    ) -> tuple[dict[int, Receiver], dict[int, Sender]]:
        """Make this rank's ends of all channels. *Collective*; the same links on every rank.

        Args:
            links: what to connect; the id of a channel is its position here. Several may connect
                the same two ranks.
            gpu: this rank's, where a link is from or to it.
            watch: receives every transfer between two GPUs; None to take no times of them.

        Returns:
            The receivers and the senders of this rank, by the id of their channel.

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
            place = partial(MpiEndpoint, self._comm, tag=self._next_tag, depth=link.depth)
            if link.consumer == self.rank:
                endpoint = place(peer=link.producer, waited=waited)
                receivers[channel] = factory.receiver(link, endpoint, transports.get(channel))
            if link.producer == self.rank:
                endpoint = place(peer=link.consumer, waited=waited)
                senders[channel] = factory.sender(link, endpoint, transports.get(channel))
            self._next_tag += MpiEndpoint.tags(link.depth)
        return receivers, senders

    def mailbox(self) -> RootMailbox:
        """A mailbox to which any rank can send a number at any time. *Collective.*"""
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
        """Let go of MPI; every channel must be closed. *Collective*, may be called twice."""
        if self.heartbeat.kept:
            self.all_gather("")  # no rank waits for the beats of one that has left
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
        """Print a report and end every rank of the job, at once and with exit status 1.

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


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def _refuse(reason: str | None) -> None:
    """Do not run as many jobs of one rank what was meant as one job of many."""
    if reason:
        raise PipeparError(reason)
