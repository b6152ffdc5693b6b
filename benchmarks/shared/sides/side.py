"""The sides of a comparison, and their order in time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

PREPARATION: Final = 20
"""Micro-batches of a warm-up, in which a new channel learns the sizes."""


class Side(Protocol):
    """One way to stream a load."""

    name: str
    microbatches: int
    """The number of micro-batches in one pass."""

    def check(self) -> None:
        """Stream once, as a warm-up, and compare the results. *Collective.*

        Raises:
            ValueError: a result is wrong.
        """

    def run(self) -> float:
        """Return the seconds of one pass on the slowest rank. *Collective.*"""


def alternate(sides: Sequence[Side], repetitions: int) -> Iterator[list[float]]:
    """Run the sides in turn, several times. *Collective.*

    Yields:
        For each repetition the seconds of each side.
    """
    for side in sides:
        side.check()
    for _ in range(repetitions):
        yield [side.run() for side in sides]


def seconds_each(sides: Sequence[Side], passes: int) -> dict[str, float]:
    """Return the median seconds of a micro-batch for each side, by name. *Collective.*"""
    times = zip(*alternate(sides, passes), strict=True)
    return {
        side.name: statistics.median(seconds) / side.microbatches
        for side, seconds in zip(sides, times, strict=True)
    }
