"""An orderly stop: after a signal no more samples begin, and samples under way are finished."""

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

# The launcher and the batch system may both send a signal; within this time, signals count once.
_SAME_SIGNAL_SECONDS: Final = 1.0

StopRequest: TypeAlias = Callable[[], str]
"""Returns on the root the name of the signal that requests a stop; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The progress of a job that was stopped by a signal."""

    by: str
    """The name of the signal."""
    done: int = 0
    """The number of samples whose results are on disk."""
    count: int = 0
    """The number of all samples; 0 if the job was stopped before the first one."""

    def __str__(self) -> str:
        """Return one line for the user."""
        when = f"after {self.done:,} of {self.count:,} samples" if self.count else "before it began"
        return f"stopped by {self.by} {when}; continue with --resume"


class Halt(Exception):
    """The job is stopped before the first sample; raised on all ranks.

    Args:
        by: the name of the signal.
    """

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


def halt_if_requested(world: World, asked: StopRequest) -> None:
    """Raise `Halt` on all ranks if a stop is requested. *Collective.*

    Args:
        world: all ranks.
        asked: called on the root.

    Raises:
        Halt: `asked` returned the name of a signal.
    """
    by = world.broadcast(asked() if world.is_root else "")
    if by:
        raise Halt(by)


def never_stopped() -> str:
    """Return the empty string: the `StopRequest` of a job without signals."""
    return ""


def reached(world: World, sink: int, by: str, written: int, count: int) -> Stopped | None:
    """Return the progress of a job when it ends. *Collective.*

    Args:
        world: all ranks.
        sink: the rank that writes the output.
        by: the name of the signal that requested a stop, or an empty string; the root's is used.
        written: the number of samples whose results are on disk; the sink's is used.
        count: the number of all samples.

    Returns:
        The progress of a job that was stopped; None if all samples are written.

    Raises:
        PipeparError: samples are missing, although no stop was requested.
    """
    texts = world.all_gather(json.dumps([by, written]))
    by, done = json.loads(texts[world.root])[0], json.loads(texts[sink])[1]
    if done == count:
        return None
    if not by:
        raise PipeparError(
            f"{count - done} of {count} samples never arrived at the last stage; expected "
            "all of them. The others are saved: run again with --resume"
        )
    return Stopped(by, done, count)


class Stop:
    """The stop requests of a job, by signals to any rank; created by `listening`.

    Args:
        world: all ranks.
        mailbox: sends the signals of other ranks to the root.
        note: called on the root with a message that the job will stop.
        leave: called with the name of the second signal; when it returns, the process exits with
            status 128 + the number of the signal.
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
        """Return, on the root, the name of the first signal of any rank; empty if there is none."""
        if not self._by and (number := self._mailbox.receive()):
            self._note_signal(number)
        return self._by

    def close(self) -> None:
        """Discard signals of other ranks not yet received; close the mailbox. *Collective.*"""
        self._mailbox.close()

    def listen(self, reader: int) -> None:
        """Handle signals until the pipe to which Python writes them is closed.

        Args:
            reader: the file descriptor of the pipe's reading end; closed on return.
        """
        while data := os.read(reader, 1):
            number = data[0]
            if number not in SIGNALS:
                continue
            if not self._by:
                self._note_signal(number)
                if not self._world.is_root:
                    self._mailbox.send(number)
            elif time.monotonic() - self._since > _SAME_SIGNAL_SECONDS:
                self._leave(signal.Signals(number).name)
                os._exit(128 + number)
        os.close(reader)

    def _note_signal(self, number: int) -> None:
        """Store the first signal and its time; display a message on the root."""
        self._since = time.monotonic()
        self._by = signal.Signals(number).name
        if self._world.is_root:
            self._note(
                f"{self._by}: no more samples begin, those under way are finished; a second one "
                "ends the job at once"
            )


@contextmanager
def listening(
    world: World, note: Callable[[str], None], leave: Callable[[str], None]
) -> Iterator[Stop]:
    """Handle stop signals of any rank during the body. *Collective.*

    Call it in the main thread. A thread reads the signals at once, whatever the rank computes or
    waits for. `Stop.asked` returns the first signal to any rank, on the root. A second signal to a
    rank, more than a second later, ends that rank. On the root, a signal that `Stop.asked` received
    from another rank counts as the first. After the body, signals are ignored: they must not change
    the exit status of a job that has finished.

    Args:
        world: all ranks.
        note: called on the root with a message that the job will stop.
        leave: called with the name of the second signal; the process exits when it returns.

    Yields:
        The stop requests.
    """
    stop = Stop(world, world.mailbox(), note, leave)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Python writes the number to the pipe; the handler prevents the end of the process.
    for each in SIGNALS:
        signal.signal(each, _do_nothing)
    thread = threading.Thread(target=stop.listen, args=(reader,), daemon=True)
    thread.start()
    release()
    try:
        yield stop
    finally:
        # A launcher may repeat the signal. Python's exit restores handlers, but not SIG_IGN.
        ignore()
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        # Bounded, since a forked child of this process may hold the pipe open.
        thread.join(_SAME_SIGNAL_SECONDS)
    stop.close()


def _do_nothing(number: int, frame: FrameType | None) -> Any:
    """Handle a signal without any action."""
