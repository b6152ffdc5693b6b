"""What every benchmark prints: where it ran, its figures, and whether its goals are met."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from mpi4py import MPI
from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured several times."""

    values: tuple[float, ...]
    """A value for each repetition."""

    @property
    def median(self) -> float:
        """The value that stands for all."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        """Median, and the range in brackets."""
        low, high = (_short(end(self.values)) for end in (min, max))
        return f"{_short(self.median)} ({low}..{high})"


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """A ratio of two sides, each repetition's with its own neighbour in time."""
    return Figure(tuple(a / b for a, b in zip(over, under, strict=True)))


def scaled(values: Iterable[float], factor: float) -> Figure:
    """The same figure in another unit."""
    return Figure(tuple(value * factor for value in values))


@dataclass(frozen=True, slots=True)
class Goal:
    """What is promised, and what was found."""

    what: str
    """The quantity, with its unit."""
    sense: Literal["at most", "at least"]
    """On which side of the limit it should lie."""
    limit: float
    """The limit, in the same unit."""
    measured: Figure
    """What was found; its median counts."""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        value = self.measured.median
        return value <= self.limit if self.sense == "at most" else value >= self.limit


class Report:
    """Prints a benchmark's tables as they come and its goals at the end.

    Args:
        title: what is measured.
        threads: threads that each rank computes with.
        ranks: how many, where the one that reports is none of them.
    """

    def __init__(self, title: str, threads: int = 1, ranks: int | None = None) -> None:
        # mpirun gives rank 0 a terminal, whatever its own output is.
        self._console = Console(width=150, highlight=False, force_terminal=False)
        library = MPI.Get_library_version().split(",")[0].split("\n")[0].strip()
        cores = len(os.sched_getaffinity(0))
        self._console.print(f"[bold]{title}[/bold]")
        self._console.print(
            f"environment: {os.cpu_count()} cores ({cores} usable), "
            f"{ranks or MPI.COMM_WORLD.size} ranks of {threads} thread{'s' * (threads > 1)}, "
            f"torch {torch.__version__}, {library}, Python {platform.python_version()}"
        )

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Figure]]
    ) -> None:
        """Print a table; the first column names its row."""
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
        for position, column in enumerate(columns):
            table.add_column(column, justify="right" if position else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(str, row))
        self._console.print(table)

    def goals(self, goals: Iterable[Goal]) -> None:
        """Print a line for each goal."""
        for goal in goals:
            self.note(
                f"goal: {goal.what} {goal.sense} {goal.limit:g}; measured: {goal.measured}; "
                f"{'met' if goal.met else 'NOT met'}"
            )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
