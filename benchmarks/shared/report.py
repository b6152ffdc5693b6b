"""The report of a benchmark: environment, tables and goals, printed and as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.shared.benchmark import Goal
from pipepar.comm.group.launcher import is_launched_root


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured several times."""

    values: tuple[float, ...]
    """One value for each repetition."""

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Return the median, and the range in brackets."""
        low, high = (_short(end(self.values)) for end in (min, max))
        return f"{_short(self.median)} ({low}..{high})"


Row: TypeAlias = Sequence[str | Figure]
"""The cells of one row of a table."""


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """Return the ratio of two sides, computed for each repetition."""
    return Figure(tuple(a / b for a, b in zip(over, under, strict=True)))


def scaled(values: Iterable[float], factor: float = 1) -> Figure:
    """Return a figure of values multiplied by a factor."""
    return Figure(tuple(value * factor for value in values))


class Report:
    """Prints notes and tables as they are added, and goals at the end.

    Under a launcher only rank 0 prints.

    Args:
        title: the first line.
    """

    def __init__(self, title: str) -> None:
        # mpirun gives rank 0 a terminal even if its own output is redirected.
        quiet = not is_launched_root()
        self._console = Console(width=150, highlight=False, force_terminal=False, quiet=quiet)
        self._blocks: list[str] = []
        self._goals: list[tuple[str, str, str]] = []
        self._console.print(title, style="bold", markup=False)
        self.note(f"environment: {_environment()}")

    def note(self, text: str) -> None:
        """Print a paragraph."""
        self._console.print(text, markup=False)
        self._blocks.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Print a table; the first column names the row."""
        cells = [[str(cell) for cell in row] for row in rows]
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
        for position, column in enumerate(columns):
            table.add_column(column, justify="right" if position else "left", no_wrap=True)
        for row in cells:
            table.add_row(*row)
        self._console.print(table)
        self._blocks.append(_markdown([title, *columns[1:]], cells))

    def goal(self, goal: Goal, measured: Figure, case: str = "") -> None:
        """Compare the median of a figure with a goal.

        Args:
            goal: the goal.
            measured: the figure, in the goal's unit.
            case: which of several cases was measured.
        """
        what = f"{case}: {goal}" if case else str(goal)
        verdict = "met" if goal.met_by(measured.median) else "NOT met"
        self._goals.append((what, str(measured), verdict))

    def close(self) -> None:
        """Print a line for each goal."""
        for what, measured, verdict in self._goals:
            self._console.print(
                f"goal: {what}; measured: {measured}; {verdict}", markup=False, soft_wrap=True
            )

    def markdown(self) -> str:
        """Return the whole report as Markdown, without the title."""
        goals = [
            (what, found, verdict.replace("NOT met", "**not met**"))
            for what, found, verdict in self._goals
        ]
        tables = [_markdown(["goal", "measured", ""], goals)] if goals else []
        return "\n\n".join([*self._blocks, *tables]) + "\n"


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _environment() -> str:
    from mpi4py import MPI

    library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip()
    return (
        f"{os.cpu_count()} cores ({len(os.sched_getaffinity(0))} usable), "
        f"torch {torch.__version__}, {library}, Python {platform.python_version()}"
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
