"""Which samples of an input need no work any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipepar.errors import PipeparError


class Done:
    """A book of samples, each done or not. Local."""

    def __init__(self, count: int, runs: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with some of them done.

        Args:
            count: number of samples.
            runs: those done, as half-open ranges of positions in the input.
        """
        self._marks = bytearray(count)
        for start, stop in runs:
            self._marks[start:stop] = b"\1" * (stop - start)

    def __len__(self) -> int:
        """Number of samples that are done."""
        return self._marks.count(1)

    @property
    def missing(self) -> int:
        """Number of samples that are not done."""
        return self._marks.count(0)

    @property
    def first_missing(self) -> int:
        """The first sample that is not done; -1 if all are."""
        return self._marks.find(0)

    def __contains__(self, position: int) -> bool:
        """Whether a sample is done; there is none out of range."""
        return 0 <= position < len(self._marks) and self._marks[position] == 1

    def add(self, positions: Iterable[int]) -> None:
        """Note that samples are done."""
        for position in positions:
            self._marks[position] = 1

    def covers(self, start: int, stop: int) -> bool:
        """Whether all samples of a range are done; it has at least one."""
        return self._marks.count(1, start, stop) == stop - start

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
        start = self._marks.find(1)
        while start >= 0:
            stop = self._marks.find(0, start)
            stop = len(self._marks) if stop < 0 else stop
            yield start, stop
            start = self._marks.find(1, stop)
