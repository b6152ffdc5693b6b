"""A set of samples, stored as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from pipepar.errors import PipeparError


class SampleSet:
    """The samples of an input that are done.

    Memory is proportional to the number of ranges, not of samples, since inputs may be very large.
    """

    def __init__(self, count: int, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Make a set of the given ranges.

        Args:
            count: number of samples of the input.
            ranges: half-open ranges of positions that are done.
        """
        self._count = count
        self._done = 0
        # Sorted, disjoint and not adjacent.
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self._add(start, stop)

    def __len__(self) -> int:
        """Number of samples that are done."""
        return self._done

    @property
    def missing(self) -> int:
        """Number of samples that are not done."""
        return self._count - self._done

    @property
    def first_missing(self) -> int:
        """The first sample that is not done; -1 if all are done."""
        first = self._stops[0] if 0 in self else 0
        return first if first < self._count else -1

    def __contains__(self, position: int) -> bool:
        """Return whether a sample is done; False out of range."""
        return self.covers(position, position + 1)

    def add(self, positions: Iterable[int]) -> None:
        """Add samples to the set."""
        order = sorted(positions)
        for start, stop in consecutive_parts(order):
            self._add(order[start], order[stop - 1] + 1)

    def covers(self, start: int, stop: int) -> bool:
        """Return whether all samples of a range are done; the range must not be empty."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and stop <= self._stops[at]

    def contains_microbatch(self, positions: Sequence[int]) -> bool:
        """Return whether the samples of a micro-batch are done.

        Args:
            positions: the positions of its samples, at least one.

        Raises:
            PipeparError: only some of them are done, so the micro-batches are not those of the
                earlier run.
        """
        found = sum(position in self for position in positions)
        if 0 < found < len(positions):
            raise PipeparError(
                f"{found} of the {len(positions)} samples of the micro-batch that begins with "
                f"sample {positions[0]} are done and the others are not; expected the "
                "micro-batches of the run that is resumed. Run again without --resume."
            )
        return found > 0

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the samples that are done as half-open ranges, in ascending order."""
        yield from zip(self._starts, self._stops, strict=True)

    def _add(self, start: int, stop: int) -> None:
        """Clip a range to the input, and merge it with the ranges that it overlaps or touches."""
        start, stop = max(start, 0), min(stop, self._count)
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        touched = slice(first, last)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        merged = zip(self._starts[touched], self._stops[touched], strict=True)
        self._done += stop - start - sum(end - begin for begin, end in merged)
        self._starts[touched] = [start]
        self._stops[touched] = [stop]


def consecutive_parts(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the indices [start, stop) of each part of the list that has consecutive positions."""
    start = 0
    for at in range(1, len(positions) + 1):
        if at == len(positions) or positions[at] != positions[at - 1] + 1:
            yield start, at
            start = at
