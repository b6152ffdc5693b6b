"""The description of a benchmark: its question, options, goals and functions."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from benchmarks.shared.run import Run


class BenchmarkError(RuntimeError):
    """A benchmark cannot run here, or a part of it failed.

    Args:
        message: the reason.
        status: the exit status of the command.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit for a measured quantity."""

    what: str
    """The quantity, with its unit."""
    sense: Literal["at most", "at least"]
    """The side of the limit on which the quantity should be."""
    limit: float
    """The limit, in the same unit."""

    def __str__(self) -> str:
        """Return the goal in words."""
        return f"{self.what} {self.sense} {self.limit:g}"

    def met_by(self, value: float) -> bool:
        """Return whether a value is on the right side of the limit."""
        return value <= self.limit if self.sense == "at most" else value >= self.limit


@dataclass(frozen=True, slots=True)
class Option:
    """An option ``--name`` of a benchmark."""

    name: str
    """The name, without dashes."""
    default: int | str | tuple[int | str, ...]
    """The default, which also gives the type; a tuple for an option with several values."""
    help: str
    """The meaning."""
    choices: tuple[str, ...] = ()
    """The allowed values; empty if all values are allowed."""

    def add_to(self, parser: ArgumentParser) -> None:
        """Add the option to a parser."""
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        shown = " ".join(map(str, values))
        parser.add_argument(
            f"--{self.name}",
            default=self.default,
            type=type(values[0]) if values else str,
            nargs="+" if isinstance(self.default, tuple) else None,
            choices=self.choices or None,
            help=f"{self.help} [{shown}]" if shown else self.help,
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One question and the functions that answer it; its name is that of its file."""

    question: str
    """The question, in one line."""
    duration: str
    """The usual time, and the requirements beyond two quiet cores."""
    measure: Callable[[Run], None]
    """Measures, and adds the figures to the report; calls `Run.job` for what needs ranks."""
    jobs: Mapping[str, Callable[[Namespace], Any]] = field(default_factory=dict)
    """Functions of a rank by name. All ranks call them with the benchmark's options, and rank 0
    returns a value that JSON can represent."""
    options: tuple[Option, ...] = ()
    """The options of the command line."""
    goals: tuple[Goal, ...] = ()
    """The goals."""
    launchable: bool = False
    """Whether mpirun or srun may start the benchmark itself, to measure on real hosts. It must
    then start one job only."""
