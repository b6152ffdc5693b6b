"""The heartbeat between ranks: each rank monitors some others, independently of MPI."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipepar.comm.group.group import Group
from pipepar.trace import ACTIVITY_NUMBERS, Activity

if TYPE_CHECKING:
    from pipepar.comm.native._pulse import Limits, Pulse

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Stacks:
    """Where the stacks of a rank's threads are written when the job is aborted."""

    signal: int
    """A signal whose handler writes the stacks without the GIL."""
    descriptor: int
    """The descriptor of the file that the handler writes to."""
    file: str
    """The path of the file to which all ranks of a host append their stacks."""
    files: str
    """The paths of these files on all hosts, as messages show them."""


class Heartbeat:
    """Sends the activity of this rank to other ranks, and monitors them."""

    def __init__(self) -> None:
        self._monitor: _Monitor | None = None

    @property
    def is_running(self) -> bool:
        """Whether the heartbeat is running."""
        return self._monitor is not None

    def begin(
        self, group: Group, limits: Limits, stacks: Stacks, listen: Callable[[Pulse], None]
    ) -> None:
        """Start to exchange heartbeats with other ranks. *Collective.*

        Must not be called while the heartbeat is running.

        Args:
            group: all ranks, at least two.
            limits: the timeouts.
            stacks: where stacks are written.
            listen: called in a thread. It calls `Pulse.wait`, aborts the job if that returns a
                report, and returns once the pulse is closed.

        Raises:
            RuntimeError: no UDP socket can be opened on this rank.
        """
        from pipepar.comm.native._pulse import Pulse, addresses

        cookie = int(group.broadcast(str(secrets.randbits(64))))
        pulse = Pulse(group.rank, group.hosts, cookie, limits)
        own = _Location(*_namespaces(), os.getpid(), pulse.port, addresses())
        texts = group.all_gather(json.dumps(asdict(own)))
        for rank in _monitored(group):
            other = _Location(**json.loads(texts[rank]))
            is_local = other.network == own.network
            process = other.process if other.processes == own.processes else 0
            pulse.meet(rank, [_LOOPBACK] if is_local else other.addresses, other.port, process)
        pulse.start(stacks.signal, stacks.descriptor, stacks.file, stacks.files)
        group.all_gather("")  # all ranks have sent their first heartbeat
        listener = threading.Thread(
            target=listen, args=[pulse], name="pipepar-watchdog", daemon=True
        )
        listener.start()
        self._monitor = _Monitor(pulse, listener)

    def set_activity(self, doing: Activity, microbatch: int, samples: Any = None) -> None:
        """Record the work that this rank begins, for its next heartbeats. For one thread only.

        Does nothing if the heartbeat is not running. Costs a few memory writes.

        Args:
            doing: the kind of work.
            microbatch: the index of the micro-batch.
            samples: int64 [b], contiguous in host memory, the numbers of its samples; None if not
                known.
        """
        monitor = self._monitor
        if monitor is None:
            return
        if samples is None:
            monitor.pulse.enter(ACTIVITY_NUMBERS[doing], microbatch)
        else:
            monitor.pulse.enter(
                ACTIVITY_NUMBERS[doing], microbatch, samples.data_ptr(), len(samples)
            )

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark this rank as waiting for other ranks during the body, such as a collective call.

        If the body raises, the mark stays. Does nothing if the heartbeat is not running.
        """
        monitor = self._monitor
        if monitor is not None:
            monitor.pulse.waits(True)
        yield
        if monitor is not None:
            monitor.pulse.waits(False)

    def waited(self) -> None:
        """Record that this rank has waited for another one until now, if it has a heartbeat."""
        if self._monitor is not None:
            self._monitor.pulse.waited()

    def close(self) -> None:
        """Stop the heartbeat. May be called twice.

        No other rank may still depend on this one.
        """
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.pulse.close()
            # A thread that returns from native code during Python's exit would end the process.
            monitor.listener.join()


@dataclass(frozen=True, slots=True)
class _Monitor:
    """The two threads of a heartbeat."""

    pulse: Pulse
    """The native thread that sends heartbeats and checks those of other ranks."""
    listener: threading.Thread
    """The thread that runs `listen`; it waits for the pulse's request to abort the job."""


@dataclass(frozen=True, slots=True)
class _Location:
    """Where a rank runs, and how to reach it."""

    network: str
    """The network namespace; ranks in the same one share the loopback interface."""
    processes: str
    """The process namespace; ranks in the same one can send signals to each other."""
    process: int
    """The process id in this namespace."""
    port: int
    """The UDP port for heartbeats."""
    addresses: list[str]
    """The IPv4 addresses of the host, except those of the loopback interface."""


def _namespaces() -> tuple[str, str]:
    """Return ids of the network and process namespaces of this rank.

    They contain the boot id of the host, since several hosts may have the same name. Without /proc,
    both are the process id, so that each rank counts as alone in its namespaces.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        net, pid = (os.readlink(f"/proc/self/ns/{name}") for name in ("net", "pid"))
    except OSError:  # no such files: treat each rank as alone on its host
        return (f"{os.getpid()}", f"{os.getpid()}")
    return (f"{boot} {net}", f"{boot} {pid}")


def _monitored(group: Group) -> list[int]:
    """Return the ranks that this one exchanges heartbeats with, in order.

    These are the root and the two neighbours in the ring of ranks. The root exchanges heartbeats
    with all other ranks, so it can report problems of any rank.
    """
    if group.is_root:
        return group.others
    neighbours = {(group.rank + step) % group.size for step in (-1, 1)}
    return sorted({group.root, *neighbours} - {group.rank})
