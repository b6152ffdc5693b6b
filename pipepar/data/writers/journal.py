"""The journal of an unfinished output: ``.NAME.journal``, with a line for each micro-batch or note.

A line is the CRC-32 of its text, a space, and the text, which is JSON. The first line is a header
that identifies the job, the others are records. A record is written after its rows are synced.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeAlias

from pipepar.data.sample_set import consecutive_parts
from pipepar.data.writers.partial import Partial, sync_folder, write_at
from pipepar.errors import InputError, PipeparError

Fields: TypeAlias = Mapping[str, Any]
"""A header: the JSON values by name that identify a job."""

# Seconds between two commits; a crash loses the work since the last one.
_PERIOD: Final = 1.0
# Bytes of rows that cause a commit before the period is over.
_URGENT_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """The rows of one micro-batch, with an optional note; or a note without rows."""

    sample_ranges: tuple[tuple[int, int], ...]
    """Positions in the user's input as half-open ranges, in the order of the rows."""
    byte_ranges: tuple[tuple[int, int], ...]
    """Half-open offsets of its bytes in the partial file, in the order they were written."""
    checksum: int
    """CRC-32 of these bytes."""
    layout: Any
    """The names, shapes or dtypes of the rows, a JSON value of the writer; None for answers and
    notes."""
    note: Any = None
    """A JSON value that a resumed job restores."""

    @property
    def samples(self) -> list[int]:
        """Positions in the user's input, in the order of the rows."""
        return [at for start, stop in self.sample_ranges for at in range(start, stop)]

    def to_json(self) -> str:
        """Return the record as JSON."""
        fields = [self.sample_ranges, self.byte_ranges, self.checksum, self.layout, self.note]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Return the record that `to_json` wrote; the checksum of the text is already checked."""
        samples, byte_ranges, checksum, layout, note = json.loads(text)
        return cls(_pairs(samples), _pairs(byte_ranges), checksum, layout, note)


def journal_of(path: Path) -> Path:
    """Return the path of the journal of an output file."""
    return path.with_name(f".{path.name}.journal")


class TrackedFile:
    """A file that tracks the byte ranges and the checksum of its writes since the last record."""

    def __init__(self, file: FileIO) -> None:
        """Start without writes.

        Args:
            file: open for writing.
        """
        self.file = file
        self._ranges: list[tuple[int, int]] = []
        self._checksum = 0

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of the data at an offset in bytes; see `partial.write_at`."""
        write_at(self.file, data, offset)
        self._checksum = zlib.crc32(data, self._checksum)
        end = offset + len(data)
        if self._ranges and self._ranges[-1][1] == offset:
            offset = self._ranges.pop()[0]
        self._ranges.append((offset, end))

    def take_record(self, samples: Sequence[int], layout: Any, note: Any) -> Record:
        """Return a record of the writes since the last one, and start the next.

        Args:
            samples: positions in the user's input, in the order of the rows.
            layout: as in `Record`.
            note: as in `Record`.
        """
        ranges = tuple((samples[a], samples[b - 1] + 1) for a, b in consecutive_parts(samples))
        record = Record(ranges, tuple(self._ranges), self._checksum, layout, note)
        self._ranges, self._checksum = [], 0
        return record


class Journal:
    """Writes the journal of an output: a thread commits the records that were added, in groups.

    The first commit creates the file atomically.
    """

    def __init__(self, partial: Partial, header: Fields, restored: Iterable[Record] = ()) -> None:
        """Start the thread; nothing is written yet.

        Args:
            partial: the file that rows are written to.
            header: identifies the job.
            restored: valid records of an earlier run.
        """
        self._path = journal_of(partial.path)
        self._partial = partial
        self._pending = bytearray(_line(json.dumps(header)))
        self._restored = 0
        for record in restored:
            self._pending += _line(record.to_json())
            self._restored += 1
        self._pending_records = 0
        self._pending_row_bytes = 0
        self._file: FileIO | None = None
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._commit_loop, name="journal", daemon=True)
        self._thread.start()

    @property
    def has_records(self) -> bool:
        """Whether there are records on disk, of this or an earlier run, to resume the job from."""
        return self._restored > 0 or self._file is not None

    def add(self, record: Record) -> None:
        """Queue a record for the next commit.

        Raises:
            InputError: another run replaced the partial file of the output.
            OSError: an earlier record could not be written.
            PipeparError: the journal is closed.
        """
        self._raise_failure()
        if self._closed:
            raise PipeparError(
                f"the journal {self._path} is closed; expected no rows after that. Write them "
                "before the context of the output is left."
            )
        with self._lock:
            self._pending += _line(record.to_json())
            self._pending_records += 1
            self._pending_row_bytes += sum(stop - start for start, stop in record.byte_ranges)
            # The first record is committed immediately, so that the job can be resumed from then.
            urgent = self._file is None or self._pending_row_bytes > _URGENT_BYTES
        if urgent:
            self._wake.set()

    def close(self) -> None:
        """Commit all records, close the file and end the thread.

        Raises:
            InputError, OSError: as for `add`.
        """
        self._closed = True
        self._wake.set()
        self._thread.join()
        if self._file is not None:
            self._file.close()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _commit_loop(self) -> None:
        closed = False
        while not closed:
            self._wake.wait(_PERIOD)
            self._wake.clear()
            closed = self._closed
            try:
                self._commit()
            except BaseException as error:
                self._failure = error  # raised by the next `add`, or by `close`
                return

    def _commit(self) -> None:
        with self._lock:
            if not self._pending_records:
                return
            data, self._pending = self._pending, bytearray()
            self._pending_records = self._pending_row_bytes = 0
        self._partial.require_own()
        os.fdatasync(self._partial.file.fileno())
        if self._file is None:
            self._file = self._create(data)
            sync_folder(self._path.parent)
            return
        write_at(self._file, data, self._file.seek(0, os.SEEK_END))
        os.fdatasync(self._file.fileno())

    def _create(self, data: bytearray) -> FileIO:
        """Create the journal with its first lines; an earlier journal is replaced atomically."""
        temporary = self._path.with_name(f"{self._path.name}.partial")
        file = FileIO(temporary, "w+")
        try:
            write_at(file, data, 0)
            os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):  # so that the first exception is raised
                temporary.unlink(missing_ok=True)
            raise
        return file


def read_journal(path: Path) -> tuple[Fields | None, Iterator[Record]]:
    """Read the journal of an output; damaged lines are skipped.

    Args:
        path: the output file.

    Returns:
        The header, or None if there is no journal or no valid line; and the valid records. Records
        are parsed only when they are iterated, since the caller must check the format in the
        header first.

    Raises:
        InputError: there are valid records without a valid header.
        OSError: the journal cannot be read.
    """
    texts = _texts(journal_of(path))
    header = next(texts, None)
    records = filter(None, texts)
    if header is None and (found := sum(1 for _ in records)):
        raise InputError(
            f"{journal_of(path)} is damaged: found {found} records without a header that "
            "identifies their job; expected one in its first line. Run again without --resume."
        )
    return (json.loads(header) if header else None), map(Record.from_json, records)


def _texts(journal: Path) -> Iterator[str | None]:
    """Yield the text of each line; None for a damaged line. Yield nothing without a file."""
    with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
        for line in file:
            yield _text_of(line.removesuffix(b"\n"))


def _pairs(lists: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, stop) for start, stop in lists)


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _text_of(line: bytes) -> str | None:
    """Return the text of a line, or None if the line is incomplete or damaged."""
    checksum, _, data = line.partition(b" ")
    return data.decode() if checksum == b"%08x" % zlib.crc32(data) and data else None
