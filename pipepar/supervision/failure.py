"""A job ends together: when one rank fails, it says why and ends all the others."""

from __future__ import annotations

import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of
from pipepar.data.writers.open_output import target_of
from pipepar.errors import PeerError, PipeparError, StageError
from pipepar.supervision.watchdog import keep_watch

_OPTION: Final = "--resume"


def report(world: World, error: BaseException) -> str:
    """The block that is the last thing on the terminal: who failed, on what, and why.

    A problem that pipepar explains itself is shown without a traceback; an exception in a stage, in
    the user's script or in pipepar, with the traceback that leads there.
    """
    if isinstance(error, PeerError):
        return ""
    lines = [f"### pipepar: rank {world.rank} of {world.size} on {world.host} failed"]
    if isinstance(error, PipeparError):
        lines.append(f"error: {error}")
    raised = error.__cause__ if isinstance(error, StageError) else error
    if raised is not None and not isinstance(raised, PipeparError | KeyboardInterrupt):
        text = "".join(traceback.format_exception(raised)).rstrip()
        lines.extend("  " + line for line in text.splitlines())
    if isinstance(error, KeyboardInterrupt):
        lines.append("interrupted from the keyboard")
    return "\n".join(lines)


class FailTogether:
    """``with FailTogether(world):`` ends the whole job when the body, or any thread, fails.

    Without it the ranks that wait for the failed one would wait for ever. In a world of one an
    exception in the body simply goes on to the caller.
    """

    def __init__(self, world: World, output: Path | None = None) -> None:
        """Take note of who is to end.

        Args:
            world: all ranks.
            output: what the body writes and keeps a journal of; None for nothing.
        """
        self._world = world
        self._kept = _Kept(output)
        self._thread_hook = threading.excepthook

    def __enter__(self) -> FailTogether:
        """Begin to watch. *Collective.*"""
        keep_watch(self._world, self._kept.told_with)
        threading.excepthook = self._in_thread
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching; abort the job if the body failed."""
        threading.excepthook = self._thread_hook
        if error is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the job because of an error; in a world of one, leave that to the caller."""
        if self._world.size == 1:
            return
        if isinstance(error, SystemExit) and not error.code:
            message = f"it left early, by sys.exit({error.code})"
            error = PipeparError(f"{message}, while others still work; let every rank finish")
        self._end(error)

    def report(self, error: BaseException) -> str:
        """The block that is the last thing on the terminal, with all that can be done."""
        return self._kept.told_with(report(self._world, error))

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        if self._world.size == 1 or args.exc_type is SystemExit:
            self._thread_hook(args)
            return
        error = args.exc_value or RuntimeError(f"{args.exc_type.__name__} in a thread")
        sys.stderr.flush()
        self._end(error)

    def _end(self, error: BaseException) -> NoReturn:
        block = self.report(error)
        if block:  # its own; a peer's comes from the peer
            from pipepar.comm.liveness.orphan import end_launcher

            end_launcher()
        self._world.abort(block)


class _Kept:
    """Whether this run has written something that the next one can go on with."""

    def __init__(self, output: Path | None) -> None:
        target = target_of(output) if output is not None else None
        self._journal = journal_of(target) if target is not None and target.name else None
        self._before = self._state()

    def told_with(self, block: str) -> str:
        """A block that says so, too, unless it speaks of that already."""
        if not block or _OPTION in block or self._state() in (None, self._before):
            return block
        return f"{block}\nwhat is done is kept: run again with {_OPTION}"

    def _state(self) -> tuple[int, ...] | None:
        """Of the journal, as far as this host sees it; None if there is none."""
        with suppress(OSError):
            if self._journal is not None:
                found = self._journal.stat()
                return found.st_ino, found.st_mtime_ns, found.st_size
        return None
