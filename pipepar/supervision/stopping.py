"""A job that is asked to stop does so in order: nothing begins, what is under way is finished."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, TypeAlias

from pipepar.comm.group.root_mailbox import RootMailbox
from pipepar.comm.world import World
from pipepar.errors import PipeparError
from pipepar.supervision.signals import SIGNALS, ignore, release

STOPPED: Final = 75
"""Exit status of a job that was stopped and can be resumed: EX_TEMPFAIL of sysexits.h."""

# Launcher and batch system may both deliver one signal: seconds in which it counts once.
_SAME: Final = 1.0


Asked: TypeAlias = Callable[[], str]
"""Gives on rank 0 what asked the job to stop; empty if nothing did."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """How far a job came that was asked to stop."""

    by: str
    """Name of the signal."""
    done: int = 0
    """Samples whose results are on disk."""
    count: int = 0
    """All samples; 0 where none had begun."""

    def __str__(self) -> str:
        """One line for the user."""
        came = (
            "before it began"
            if not self.count
            else f"after {self.done:,} of {self.count:,} samples"
        )
        return f"stopped by {self.by} {came}; continue with --resume"


class Halt(Exception):
    """A job is asked to stop before it has begun; on every rank.

    Args:
        by: name of the signal.
    """

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


def halt_if_asked(world: World, asked: Asked) -> None:
    """Go on, unless rank 0 is asked to stop. *Collective.*

    Raises:
        Halt: it is.
    """
    by = world.broadcast(asked() if world.is_root else "")
    if by:
        raise Halt(by)


def never_stopped() -> str:
    """For a job that cannot be stopped."""
    return ""


def reached(world: World, sink: int, by: str, written: int, count: int) -> Stopped | None:
    """How far a job came that is at its end. *Collective.*

    Args:
        world: all ranks.
        sink: the rank that writes.
        by: what asked it to stop, empty if nothing did; rank 0's counts.
        written: samples whose results are on disk; the last rank's counts.
        count: all samples.

    Returns:
        None if they are all written.

    Raises:
        PipeparError: they are not, though nothing asked it to stop.
    """
    texts = world.all_gather(json.dumps([by, written]))
    by, done = json.loads(texts[world.root])[0], json.loads(texts[sink])[1]
    if done == count:
        return None
    if not by:
        raise PipeparError(
            f"{count - done} of {count} samples never arrived at the last stage; expected "
            "all of them. Those that did are kept: run again with --resume"
        )
    return Stopped(by, done, count)


class Stop:
    """What signals on any rank tell a job; made by `listening`.

    Args:
        world: all ranks.
        mailbox: of rank 0, for signals to other ranks.
        note: receives, on rank 0, that the job is about to stop.
        leave: receives the second signal; the process ends when it returns.
    """

    def __init__(
        self,
        world: World,
        mailbox: RootMailbox,
        note: Callable[[str], None],
        leave: Callable[[str], None],
    ) -> None:
        self._world = world
        self._mailbox = mailbox
        self._note = note
        self._leave = leave
        self._by = ""
        self._since = 0.0

    def asked(self) -> str:
        """On rank 0, the name of the signal that a rank got; empty if none did."""
        if not self._by and (number := self._mailbox.receive()):
            self._hear(number)
        return self._by

    def close(self) -> None:
        """Hear no more; every signal has reached rank 0. *Collective.*"""
        self._mailbox.close()

    def listen(self, reader: int) -> None:
        """Hear signals until the pipe that Python writes them to is closed.

        Args:
            reader: file descriptor of the pipe's end; closed at the end.
        """
        while data := os.read(reader, 1):
            number = data[0]
            if number not in SIGNALS:
                continue
            if not self._by:
                self._hear(number)
                if not self._world.is_root:
                    self._mailbox.send(number)
            elif time.monotonic() - self._since > _SAME:
                self._leave(signal.Signals(number).name)
                os._exit(128 + number)
        os.close(reader)

    def _hear(self, number: int) -> None:
        self._since = time.monotonic()
        self._by = signal.Signals(number).name
        if self._world.is_root:
            self._note(
                f"{self._by}: no more samples begin, those under way are finished; the same again "
                "ends the job at once"
            )


@contextmanager
def listening(
    world: World, note: Callable[[str], None], leave: Callable[[str], None]
) -> Iterator[Stop]:
    """Take note of signals on any rank. *Collective*; main thread.

    A thread hears them at once, whatever the rank computes or waits for. The first on any rank
    makes `Stop.asked` tell rank 0, the second on a rank ends that rank. After the body they are
    ignored: what is left to do is the end, which a signal must not turn into another.

    Args:
        world: all ranks.
        note: receives, on rank 0, that the job is about to stop.
        leave: receives the second signal; the process ends when it returns.
    """
    stop = Stop(world, world.mailbox(), note, leave)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The pipe has the number already; a handler keeps the signal from ending the process.
    for each in SIGNALS:
        signal.signal(each, _heard)
    thread = threading.Thread(target=stop.listen, args=(reader,), daemon=True)
    thread.start()
    release()
    try:
        yield stop
    finally:
        # A launcher may well repeat itself, and Python's end takes handlers back, but not this.
        ignore()
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        thread.join(_SAME)  # a child that this process forked may hold the pipe open
    stop.close()


def _heard(number: int, frame: FrameType | None) -> Any:
    """A handler that does nothing."""
