"""Where a rank's words go: a terminal that can show a moving bar, or a file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pipepar.comm.group.launcher import launched

UNBOUNDED: Final = 10_000
"""Columns of what may be searched in a file, or read by a program: nothing is cut off."""

_WIDTH: Final = 100
_PLAIN_SECONDS: Final = 5.0


def open_console(*, stdout: bool = False, width: int = _WIDTH) -> Console:
    """A console that knows the terminal behind it, also through a launcher.

    A launcher reads what its ranks write and writes it to its own stdout and stderr; so a rank has
    a terminal if the launcher, its parent process, has one. What a rank finds itself says nothing:
    mpirun gives it a pipe, or a terminal of no width.

    Args:
        stdout: whether it is on stdout, not on stderr.
        width: columns where there is no terminal.
    """
    own = sys.stdout if stdout else sys.stderr
    if launched() and not _has_width(own):
        columns = _launcher_width(1 if stdout else 2)
        return _console(stdout, columns or width, columns is not None)
    return _console(stdout, None if own.isatty() else width, None)


def _console(stdout: bool, width: int | None, terminal: bool | None) -> Console:
    return Console(stderr=not stdout, width=width, force_terminal=terminal, highlight=False)


def _has_width(stream: TextIO) -> bool:
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def _launcher_width(number: int) -> int | None:
    """Columns of the launcher's terminal behind that file descriptor, None where it has none."""
    options = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK  # a pipe may have no reader any more
    try:
        terminal = os.open(f"/proc/{os.getppid()}/fd/{number}", options)
    except OSError:
        return None
    try:
        return os.get_terminal_size(terminal).columns or None
    except OSError:
        return None
    finally:
        os.close(terminal)


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far the work is: a bar on a terminal, else a line every few seconds.

    Args:
        console: where to.
        total: number of samples.

    Yields:
        A function to call with the number of samples that have just been done.
    """
    if not console.is_terminal:
        yield _lines(console, total, "{:,.0f} of {:,.0f} samples", "{:,.1f} samples/s")
        return
    columns = (
        TextColumn("[bold]pipepar"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:,.0f} samples/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, speed=0.0)
        begin, done = time.monotonic(), 0

        def advance(samples: int) -> None:
            nonlocal done
            done += samples
            speed = done / max(time.monotonic() - begin, 1e-9)
            bar.update(task, advance=samples, speed=speed)

        yield advance


@contextmanager
def loading(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many bytes of the weights are there: a bar on a terminal, else lines.

    Args:
        console: where to.
        total: bytes to load.

    Yields:
        A function to call with the number of bytes that have just been loaded.
    """
    if not console.is_terminal:
        amount = "{:,.1f} of {:,.1f} MiB of weights"
        advance = _lines(console, total / 2**20, amount, "{:,.0f} MiB/s")
        yield lambda size: advance(size / 2**20)
        return
    columns = (
        TextColumn("[bold]pipepar[/] weights"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.update(task, advance=size)


def _lines(console: Console, total: float, amount: str, speed: str) -> Callable[[float], None]:
    """Print a line every few seconds and one at the end; `amount` formats what is done of all."""
    begin = shown = time.monotonic()
    done = 0.0

    def advance(more: float) -> None:
        nonlocal shown, done
        if not more:
            return
        done += more
        now = time.monotonic()
        if now - shown < _PLAIN_SECONDS and done < total:
            return
        shown = now
        rate = done / max(now - begin, 1e-9)
        console.print(
            f"pipepar: {amount.format(done, total)} ({done / total:.0%}), {speed.format(rate)}, "
            f"{(total - done) / rate:,.0f} s left"
        )

    return advance
