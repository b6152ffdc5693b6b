"""Output of a rank: progress bars on a terminal, otherwise lines."""

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
"""The width, in columns, of output that is searched or parsed, so that no line is wrapped."""

_WIDTH: Final = 100
# Seconds between progress lines.
_LINE_SECONDS: Final = 5.0


def open_console(*, stdout: bool = False, width: int = _WIDTH) -> Console:
    """Return a console with the width of the terminal, also under a launcher.

    A launcher forwards the output of its ranks to its own stdout and stderr. So a rank has a
    terminal if the launcher, its parent process, has one. The rank's own streams do not show that:
    mpirun connects them to a pipe, or to a terminal without a width.

    Args:
        stdout: whether the console writes to stdout instead of stderr.
        width: columns if there is no terminal.
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
    """Return the width of the terminal that a file descriptor of the launcher refers to.

    None if it is not a terminal, has no width, or cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe without a reader would block.
    options = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK
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
    """Show the progress of a run: a bar on a terminal, otherwise a line every few seconds.

    Args:
        console: the output.
        total: number of samples.

    Yields:
        A function that takes the number of samples just done.
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
    """Show how many bytes of weights are loaded: a bar on a terminal, otherwise lines.

    Args:
        console: the output.
        total: bytes to load.

    Yields:
        A function that takes the number of bytes just loaded.
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
    """Return a function that prints a line at most every few seconds, and one at the end.

    Args:
        console: the output.
        total: the amount of all work.
        amount: format of the work done and of `total`.
        speed: format of the work done per second.

    Returns:
        A function that takes the amount of work just done.
    """
    begin = shown = time.monotonic()
    done = 0.0

    def advance(more: float) -> None:
        nonlocal shown, done
        if not more:
            return
        done += more
        now = time.monotonic()
        if now - shown < _LINE_SECONDS and done < total:
            return
        shown = now
        rate = done / max(now - begin, 1e-9)
        console.print(
            f"pipepar: {amount.format(done, total)} ({done / total:.0%}), {speed.format(rate)}, "
            f"{(total - done) / rate:,.0f} s left"
        )

    return advance
