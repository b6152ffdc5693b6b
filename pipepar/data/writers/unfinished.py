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
    """The files of an unfinished output; made by `find_unfinished`."""

    header: Fields
    """Identifies the job of the earlier run."""
    partial: Partial
    """The partial file, locked by this run."""
    renamed: bool
    """Whether the rows can only be under the final name, since the partial file is empty: the
    earlier run then renamed the output, and ended before it removed the journal."""
    progress: Callable[[], None] = lambda: None
    """Called for every record that is read, since reading all of them may take long."""

    def valid_records(self) -> Iterator[tuple[Record, bytes]]:
        """Yield the records whose bytes match their checksum, with these bytes.

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
        """Return the unfinished output, or None if its journal has no rows to refer to.

        That is so if the partial file is empty and the final name does not have all rows either.

        Args:
            count: number of samples.

        Raises:
            OSError: a file cannot be read.
        """
        left = self.unfinished
        if left is None or not left.renamed:
            return left
        found = (each for record, _ in left.valid_records() for each in record.sample_ranges)
        return None if SampleSet(count, found).missing else left


def is_unfinished(path: Path) -> bool:
    """Return whether an earlier run left an output that can be resumed.

    Args:
        path: the output file.
    """
    partial = partial_of(path)
    return journal_of(path).is_file() and partial.is_file() and partial.stat().st_size > 0


def find_unfinished(partial: Partial) -> Unfinished | None:
    """Return the unfinished output of an earlier run.

    Args:
        partial: the partial file of the output, locked by this run.

    Returns:
        None if there are no rows or no journal.

    Raises:
        InputError: the journal does not identify its job.
        OSError: a file cannot be read.
    """
    if partial.is_empty and not partial.path.is_file():
        return None
    header, _ = read_journal(partial.path)
    return None if header is None else Unfinished(header, partial, partial.is_empty)
