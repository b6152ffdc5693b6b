"""The common end of all ranks: a rank that fails reports the cause and aborts the job."""

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
    """Return the block of text that ends the output of a failed job.

    It has the rank, the host and the cause. Errors of pipepar (`PipeparError`) and interrupts from
    the keyboard are shown without a traceback; other exceptions, and the cause of a `StageError`,
    with one.

    Args:
        world: all ranks.
        error: the exception.

    Returns:
        Lines separated by newlines; empty for `PeerError`, which another rank reports.
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
    """A context manager that aborts the job when its body, or any thread, raises an exception.

    Without it, ranks that wait for the failed one would wait forever. In a world of one, exceptions
    propagate as usual. SystemExit in a thread other than the main one ends only that thread.
    """

    def __init__(self, world: World, output: Path | None = None) -> None:
        """Create the context manager; `__enter__` starts it.

        Args:
            world: all ranks.
            output: the path of the output that the body writes with a journal; None if it writes
                none.
        """
        self._world = world
        self._journal = _JournalProgress(output)
        self._thread_hook = threading.excepthook

    def __enter__(self) -> FailTogether:
        """Start the watchdog. *Collective.*"""
        keep_watch(self._world, self._journal.add_remedy)
        threading.excepthook = self._in_thread
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Abort the job if the body raised an exception."""
        threading.excepthook = self._thread_hook
        if error is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Abort the job because of an error; do nothing in a world of one.

        SystemExit with status 0 is reported as a rank that left too early.
        """
        if self._world.size == 1:
            return
        if isinstance(error, SystemExit) and not error.code:
            message = f"this rank has left early, by sys.exit({error.code})"
            error = PipeparError(f"{message}, while others still work; let every rank finish")
        self._abort(error)

    def report(self, error: BaseException) -> str:
        """Return the final block of text, with the hint to resume if that is possible."""
        return self._journal.add_remedy(report(self._world, error))

    def _in_thread(self, args: threading.ExceptHookArgs) -> None:
        """Abort the job for an exception in a thread; see `threading.excepthook`."""
        if self._world.size == 1 or args.exc_type is SystemExit:
            self._thread_hook(args)
            return
        error = args.exc_value or RuntimeError(f"{args.exc_type.__name__} in a thread")
        sys.stderr.flush()
        self._abort(error)

    def _abort(self, error: BaseException) -> NoReturn:
        """Print the report, unless another rank does, and end all ranks and the launcher."""
        block = self.report(error)
        if block:  # empty for an error of another rank, which then ends the launcher
            from pipepar.comm.liveness.orphan import end_launcher

            end_launcher()
        self._world.abort(block)


class _JournalProgress:
    """Detects whether the journal has changed since this object was made, so that the job can be
    resumed."""

    def __init__(self, output: Path | None) -> None:
        target = target_of(output) if output is not None else None
        self._path = journal_of(target) if target is not None and target.name else None
        self._before = self._state()

    def add_remedy(self, block: str) -> str:
        """Return the block with the hint to resume, if there is progress and it has no such hint.

        Only the rank that can read the journal adds it.
        """
        if not block or _OPTION in block or self._state() in (None, self._before):
            return block
        return f"{block}\nfinished samples are saved: run again with {_OPTION}"

    def _state(self) -> tuple[int, ...] | None:
        """Return inode, time and size of the journal; None if this host sees none."""
        with suppress(OSError):
            if self._path is not None:
                found = self._path.stat()
                return found.st_ino, found.st_mtime_ns, found.st_size
        return None
