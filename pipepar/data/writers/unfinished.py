"""An output that an earlier run has begun and not finished."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from pipepar.data.sample_set import SampleSet
from pipepar.data.writers.journal import Fields, Record, journal_of, read_journal
from pipepar.data.writers.partial import Partial, partial_of, read_at


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an earlier run has left; made by `find_unfinished`."""

    header: Fields
    """The job that it was."""
    partial: Partial
    """Held by this run alone."""
    renamed: bool
    """Whether the rows can only be under the final name: all that was left to do was to remove the
    journal."""
    progress: Callable[[], None] = lambda: None
    """Is called with every record that is looked at: there may be many, with many bytes."""

    def sound(self) -> Iterator[tuple[Record, bytes]]:
        """Yield the records whose bytes are what they were, with these bytes.

        Raises:
            OSError: the file cannot be read.
        """
        _, records = read_journal(self.partial.path)
        with self._rows() as file:
            for record in records:
                data = b"".join(read_at(file, start, stop - start) for start, stop in record.ranges)
                self.progress()
                if zlib.crc32(data) == record.checksum:
                    yield record, data

    def _rows(self) -> AbstractContextManager[FileIO]:
        return FileIO(self.partial.path) if self.renamed else nullcontext(self.partial.file)


@dataclass(frozen=True, slots=True)
class Resumable:
    """What it takes for an output to be resumed."""

    partial: Partial
    """Held by this run alone; who writes to it closes it."""
    header: Fields
    """What the job is known by."""
    left: Unfinished | None = None
    """What an earlier run of this very job has left, to go on with."""
    taken: Callable[[list[int], Any], None] = lambda samples, note: None
    """Called with the samples and the note of every record that still holds, in order."""

    def usable(self, count: int) -> Unfinished | None:
        """What is left, unless it is nothing but a journal of rows that are nowhere.

        Args:
            count: number of samples.

        Raises:
            OSError: a file cannot be read.
        """
        if self.left is None or not self.left.renamed:
            return self.left
        there = (run for record, _ in self.left.sound() for run in record.runs)
        return None if SampleSet(count, there).missing else self.left


def is_unfinished(path: Path) -> bool:
    """Whether an earlier run has left something of an output that can be resumed.

    Args:
        path: the output file.
    """
    partial = partial_of(path)
    return journal_of(path).is_file() and partial.is_file() and partial.stat().st_size > 0


def find_unfinished(partial: Partial) -> Unfinished | None:
    """Look what an earlier run has left of an output.

    Args:
        partial: of the output; held by this run.

    Returns:
        None if nothing is left, or nothing that was acknowledged.

    Raises:
        InputError: nobody can tell any more of which job it is.
        OSError: a file cannot be read.
    """
    if partial.is_empty and not partial.path.is_file():
        return None
    header, _ = read_journal(partial.path)
    return None if header is None else Unfinished(header, partial, partial.is_empty)
