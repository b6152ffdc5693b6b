"""The heartbeat between ranks, beside MPI: each rank monitors some others once it has begun."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipepar.comm.group.group import Group
from pipepar.trace import DOINGS, Doing

if TYPE_CHECKING:
    from pipepar.comm.native._pulse import Limits, Pulse

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Stacks:
    """How the stacks of a rank's threads are written in the end."""

    signal: int
    """Its handler writes them, and takes no GIL."""
    descriptor: int
    """Of the file that it writes them to."""
    file: str
    """Where they are added to those of other ranks."""
    files: str
    """The path of all of them, as messages show it."""


class Heartbeat:
    """What this rank is doing, sent to the others, and what it receives of theirs."""

    def __init__(self) -> None:
        self._monitor: _Monitor | None = None

    @property
    def kept(self) -> bool:
        """Whether it has begun and is not closed."""
        return self._monitor is not None

    def begin(
        self, group: Group, limits: Limits, stacks: Stacks, listen: Callable[[Pulse], None]
    ) -> None:
        """Begin to watch over the other ranks, as they do over this one. *Collective.*

        Args:
            group: all ranks, at least two.
            limits: how long what may take.
            stacks: for the end.
            listen: waits, in a thread, for the pulse to tell that this rank is to end the job.
        """
        from pipepar.comm.native._pulse import Pulse, addresses

        cookie = int(group.broadcast(str(secrets.randbits(64))))
        pulse = Pulse(group.rank, group.hosts, cookie, limits)
        mine = _Place(*_here(), os.getpid(), pulse.port, addresses())
        places = [_Place(**json.loads(text)) for text in group.all_gather(json.dumps(asdict(mine)))]
        for rank in _monitored(group):
            place = places[rank]
            near = place.network == mine.network
            process = place.process if place.processes == mine.processes else 0
            pulse.meet(rank, [_LOOPBACK] if near else place.addresses, place.port, process)
        pulse.start(stacks.signal, stacks.descriptor, stacks.file, stacks.files)
        group.all_gather("")  # from here on a rank whose beats stop counts as lost
        listener = threading.Thread(
            target=listen, args=[pulse], name="pipepar-watchdog", daemon=True
        )
        listener.start()
        self._monitor = _Monitor(pulse, listener)

    def tell(self, doing: Doing, microbatch: int, samples: Any = None) -> None:
        """Let the others know what this rank begins; costs next to nothing.

        Args:
            doing: what.
            microbatch: its index.
            samples: int64 [b], on the host: numbers of its samples; None where they are not known.
        """
        monitor = self._monitor
        if monitor is None:
            return
        if samples is None:
            monitor.pulse.enter(DOINGS[doing], microbatch)
        else:
            monitor.pulse.enter(DOINGS[doing], microbatch, samples.data_ptr(), len(samples))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The body is over only when other ranks have come to the same place."""
        monitor = self._monitor
        if monitor is not None:
            monitor.pulse.waits(True)
        yield
        if monitor is not None:
            monitor.pulse.waits(False)

    def waited(self) -> None:
        """Up to now this rank waited for another one."""
        if self._monitor is not None:
            self._monitor.pulse.waited()

    def close(self) -> None:
        """Watch no longer; the others must have done their part. May be called twice."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.pulse.close()
            # A thread that comes back from native code while Python ends, ends the process.
            monitor.listener.join()


@dataclass(frozen=True, slots=True)
class _Monitor:
    """The two threads of a heartbeat."""

    pulse: Pulse
    """Sends beats, and checks those of the other ranks; native."""
    listener: threading.Thread
    """Waits for the pulse to report that this rank has to end the job."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a rank can be reached."""

    network: str
    """Ranks with the same share a loopback."""
    processes: str
    """Ranks with the same can signal each other."""
    process: int
    """Its id there."""
    port: int
    """Of its beats, UDP."""
    addresses: list[str]
    """IPv4, but the loopback's."""


def _here() -> tuple[str, str]:
    """The network and the processes that this rank sees: names need not tell machines apart."""
    machine = Path("/proc/sys/kernel/random/boot_id")
    found = ["", ""]
    with suppress(OSError):  # no such system: ranks are then strangers, who meet by address
        boot = machine.read_text(encoding="ascii").strip()
        found = [f"{boot} {os.readlink(f'/proc/self/ns/{name}')}" for name in ("net", "pid")]
    return (found[0] or f"{os.getpid()}", found[1] or f"{os.getpid()}")


def _monitored(group: Group) -> list[int]:
    """The ranks that this one exchanges beats with: the root and the neighbours in the ring.

    The root exchanges beats with all ranks, so it can report for all of them.
    """
    if group.is_root:
        return group.others
    neighbours = {(group.rank + step) % group.size for step in (-1, 1)}
    return sorted({group.root, *neighbours} - {group.rank})
