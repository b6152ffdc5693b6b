"""An output that an earlier run left unfinished."""

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
    """An unfinished output; made by `find_unfinished`."""

    header: Fields
    """Identifies the job of the earlier run."""
    partial: Partial
    """The partial file, locked by this run."""
    renamed: bool
    """Whether the partial file is empty, so that any rows are in the file with the final name. This
    happens if the earlier run renamed the output and ended before it removed the journal."""
    progress: Callable[[], None] = lambda: None
    """Called after every record that is read, because reading all of them may take long."""

    def valid_records(self) -> Iterator[tuple[Record, bytes]]:
        """Yield the records whose bytes match their checksum, with these bytes; skip the others.

        Raises:
            OSError: a file cannot be read.
        """
        _, records = read_journal(self.partial.path)
        with self._rows() as file:
            for record in records:
                ranges = record.byte_ranges
                data = b"".join(read_at(file, start, stop - start) for start, stop in ranges)
                self.progress()
                if zlib.crc32(data) == record.checksum:
                    yield record, data

    def _rows(self) -> AbstractContextManager[FileIO]:
        return FileIO(self.partial.path) if self.renamed else nullcontext(self.partial.file)


@dataclass(frozen=True, slots=True)
class Resumable:
    """The arguments of a writer whose output can be resumed."""

    partial: Partial
    """The partial file, locked by this run; the writer closes it."""
    header: Fields
    """Identifies the job."""
    unfinished: Unfinished | None = None
    """The unfinished output of an earlier run of the same job; None to start from the beginning."""
    on_restored: Callable[[list[int], Any], None] = lambda samples, note: None
    """Called with the samples and the note of every restored record, in order."""

    def usable(self, count: int) -> Unfinished | None:
        """Return the unfinished output if it can be resumed.

        Args:
            count: number of samples.

        Returns:
            None if there is none, or if the partial file is empty and the file with the final name
            does not have valid rows of all samples.

        Raises:
            OSError: a file cannot be read.
        """
        left = self.unfinished
        if left is None or not left.renamed:
            return left
        found = (each for record, _ in left.valid_records() for each in record.sample_ranges)
        return None if SampleSet(count, found).missing else left


def is_unfinished(path: Path) -> bool:
    """Return whether an earlier run left a journal and a partial file that is not empty.

    Neither is read. False for an output that was renamed but whose journal was not removed.

    Args:
        path: the output file.
    """
    partial = partial_of(path)
    return journal_of(path).is_file() and partial.is_file() and partial.stat().st_size > 0


def find_unfinished(partial: Partial) -> Unfinished | None:
    """Return the unfinished output of an earlier run; its rows are not read.

    Args:
        partial: the partial file of the output, locked by this run.

    Returns:
        None if the journal is missing or has no valid line, or if the partial file is empty and
        there is no file with the final name.

    Raises:
        InputError: the journal has records but no valid header, which identifies the job.
        OSError: a file cannot be read.
    """
    if partial.is_empty and not partial.path.is_file():
        return None
    header, _ = read_journal(partial.path)
    return None if header is None else Unfinished(header, partial, partial.is_empty)
