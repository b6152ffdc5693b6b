"""Which samples of an input need no work any more."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from pipepar.errors import PipeparError


class SampleSet:
    """A book of samples, each done or not.

    It takes memory for each stretch of samples that are done one after the other, not for each
    sample: an input may have very many.
    """

    def __init__(self, count: int, runs: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with some of them done.

        Args:
            count: number of samples.
            runs: those done, as half-open ranges of positions in the input.
        """
        self._count = count
        self._done = 0
        # Sorted, and none touches the next.
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in runs:
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
        """The first sample that is not done; -1 if all are."""
        first = self._stops[0] if 0 in self else 0
        return first if first < self._count else -1

    def __contains__(self, position: int) -> bool:
        """Whether a sample is done; there is none out of range."""
        return self.covers(position, position + 1)

    def add(self, positions: Iterable[int]) -> None:
        """Note that samples are done."""
        order = sorted(positions)
        for start, stop in runs(order):
            self._add(order[start], order[stop - 1] + 1)

    def covers(self, start: int, stop: int) -> bool:
        """Whether all samples of a range are done; it has at least one."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and stop <= self._stops[at]

    def holds(self, positions: Sequence[int]) -> bool:
        """Whether a whole micro-batch is done.

        Args:
            positions: of its samples, at least one.

        Raises:
            PipeparError: a part of it is, so that these are not the micro-batches of before.
        """
        found = sum(position in self for position in positions)
        if 0 < found < len(positions):
            raise PipeparError(
                f"{found} of the {len(positions)} samples of a micro-batch, which begins with "
                f"sample {positions[0]}, are done and the others are not; expected the "
                "micro-batches of the run that is resumed. Run again without --resume."
            )
        return found > 0

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the samples that are done as half-open ranges, in order."""
        yield from zip(self._starts, self._stops, strict=True)

    def _add(self, start: int, stop: int) -> None:
        """Note a range, as far as there are such samples, and join it with those it touches."""
        start, stop = max(start, 0), min(stop, self._count)
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        touched = slice(first, last)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        known = zip(self._starts[touched], self._stops[touched], strict=True)
        self._done += stop - start - sum(end - begin for begin, end in known)
        self._starts[touched] = [start]
        self._stops[touched] = [stop]


def runs(positions: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the parts [start, stop) of positions that follow one another."""
    start = 0
    for at in range(1, len(positions) + 1):
        if at == len(positions) or positions[at] != positions[at - 1] + 1:
            yield start, at
            start = at
