"""An output that an earlier run has begun and not finished."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipepar.data.journal import Fields, Record, journal_of, read_journal
from pipepar.data.partial import Partial, naming, partial_of, read_at
from pipepar.errors import InputError


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an earlier run has left, held by this run alone; made by `take_unfinished`. Local."""

    header: Fields
    """The job that it was."""
    records: tuple[Record, ...]
    """What its journal says is there."""
    partial: Partial
    """Where that is."""

    def sound(self) -> Iterator[tuple[Record, bytes]]:
        """Yield the records whose bytes are what they were, with these bytes.

        Raises:
            OSError: the file cannot be read.
        """
        for record in self.records:
            data = b"".join(
                read_at(self.partial.file, start, stop - start) for start, stop in record.ranges
            )
            if zlib.crc32(data) == record.checksum:
                yield record, data


def is_unfinished(path: Path) -> bool:
    """Whether an earlier run has left something of an output that can be resumed. *Local.*

    Args:
        path: the output file.
    """
    return journal_of(path).is_file() and partial_of(path).is_file()


def take_unfinished(path: Path) -> Unfinished | None:
    """Open what an earlier run has left of an output, and keep other runs from it. *Local.*

    Args:
        path: the output file.

    Returns:
        None if nothing is left, or nothing that was acknowledged.

    Raises:
        InputError: another run writes to it, or nobody can tell any more of which job it is.
        OSError: a file cannot be read.
    """
    if not is_unfinished(path):
        return None
    with naming(path):
        partial = Partial(path)
        header, records = read_journal(path)
    if header is not None:
        return Unfinished(header, tuple(records), partial)
    partial.keep()
    if records:
        raise InputError(
            f"{journal_of(path)} is damaged: found {len(records)} records without the header that "
            "tells their job; expected one in its first line. Run again without --resume."
        )
    return None
