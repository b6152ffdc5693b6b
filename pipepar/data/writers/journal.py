"""What of an output is safe on disk: a line for each micro-batch, in ``.NAME.journal``.

Every line is the checksum of what follows it, a space and JSON: first a header, which tells the job
that the rows are of, then records. A record is written once the rows that it names are on disk.
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
"""A header: what a job is known by, JSON values by name."""

# Between two commits: what a crash may cost, in seconds of work.
_PERIOD: Final = 1.0
# Bytes of rows from which on a commit does not wait for that.
_MUCH: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One micro-batch whose rows are on disk."""

    consecutive_parts: tuple[tuple[int, int], ...]
    """Its samples in the order of its rows: positions in the user's input, as half-open ranges."""
    ranges: tuple[tuple[int, int], ...]
    """Where its bytes are in the part file, half-open, in the order they were written."""
    checksum: int
    """CRC-32 of these bytes."""
    layout: Any
    """How rows lie in the file, a JSON value; None where they only follow one another."""
    note: Any = None
    """What else is to be known of the micro-batch when the job is resumed, a JSON value."""

    @property
    def samples(self) -> list[int]:
        """Positions in the user's input, in the order of its rows."""
        return [at for start, stop in self.consecutive_parts for at in range(start, stop)]

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        return json.dumps(
            [self.consecutive_parts, self.ranges, self.checksum, self.layout, self.note]
        )

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Undo `to_json`; the text's own checksum has been found right."""
        samples, ranges, checksum, layout, note = json.loads(text)
        return cls(_pairs(samples), _pairs(ranges), checksum, layout, note)


def journal_of(path: Path) -> Path:
    """The journal's name beside an output file."""
    return path.with_name(f".{path.name}.journal")


class Trail:
    """A file, and what has been written to it since the last record."""

    def __init__(self, file: FileIO) -> None:
        """Begin; nothing has been written."""
        self.file = file
        self._ranges: list[tuple[int, int]] = []
        self._checksum = 0

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of the data there; see `partial.write_at`."""
        write_at(self.file, data, offset)
        self._checksum = zlib.crc32(data, self._checksum)
        end = offset + len(data)
        if self._ranges and self._ranges[-1][1] == offset:
            offset = self._ranges.pop()[0]
        self._ranges.append((offset, end))

    def record(self, samples: Sequence[int], layout: Any, note: Any) -> Record:
        """What has been written, as some samples' record; then begin anew."""
        their = tuple((samples[a], samples[b - 1] + 1) for a, b in consecutive_parts(samples))
        record = Record(their, tuple(self._ranges), self._checksum, layout, note)
        self._ranges, self._checksum = [], 0
        return record


class Journal:
    """Writes a journal beside an output; a thread of its own commits what has come, in groups.

    The file is made, whole and at once, by the first commit.
    """

    def __init__(self, partial: Partial, header: Fields, kept: Iterable[Record] = ()) -> None:
        """Begin; nothing is on disk yet.

        Args:
            partial: the file that rows are written to.
            header: the job.
            kept: records of an earlier run that still hold.
        """
        self._path = journal_of(partial.path)
        self._partial = partial
        self._pending = bytearray(_line(json.dumps(header)))
        self._kept = 0
        for record in kept:
            self._pending += _line(record.to_json())
            self._kept += 1
        self._fresh = 0
        self._bytes = 0
        self._file: FileIO | None = None
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    @property
    def holds_any(self) -> bool:
        """Whether anything is on disk that could be resumed."""
        return self._kept > 0 or self._file is not None

    def add(self, record: Record) -> None:
        """Have a record written, by and by.

        Raises:
            InputError: another run took the place of the output's partial.
            OSError: an earlier record could not be written.
            PipeparError: the journal has ended.
        """
        self._check()
        if self._ended:
            raise PipeparError(
                f"the journal {self._path} has ended; expected no rows after that. Write them "
                "before the context of the output is left."
            )
        with self._lock:
            self._pending += _line(record.to_json())
            self._fresh += 1
            self._bytes += sum(stop - start for start, stop in record.ranges)
            # The first at once: from then on there is something to resume, whatever happens.
            urgent = self._file is None or self._bytes > _MUCH
        if urgent:
            self._wake.set()

    def end(self) -> None:
        """Write what has come, and close the file; the thread ends.

        Raises:
            InputError, OSError: as for `add`.
        """
        self._ended = True
        self._wake.set()
        self._thread.join()
        if self._file is not None:
            self._file.close()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        ended = False
        while not ended:
            self._wake.wait(_PERIOD)
            self._wake.clear()
            ended = self._ended
            try:
                self._commit()
            except BaseException as error:
                self._failure = error  # the next write raises it, whatever it is
                return

    def _commit(self) -> None:
        with self._lock:
            if not self._fresh:
                return
            data, self._pending = self._pending, bytearray()
            self._fresh = self._bytes = 0
        self._partial.require_own()
        os.fdatasync(self._partial.file.fileno())
        if self._file is None:
            self._file = self._made(data)
            sync_folder(self._path.parent)
            return
        write_at(self._file, data, self._file.seek(0, os.SEEK_END))
        os.fdatasync(self._file.fileno())

    def _made(self, data: bytearray) -> FileIO:
        """The journal with its first records; it takes the place of an earlier one at once."""
        beside = self._path.with_name(f"{self._path.name}.partial")
        file = FileIO(beside, "w+")
        try:
            write_at(file, data, 0)
            os.fsync(file.fileno())
            os.replace(beside, self._path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                beside.unlink(missing_ok=True)
            raise
        return file


def read_journal(path: Path) -> tuple[Fields | None, Iterator[Record]]:
    """Read what there is of a journal, whatever has become of it.

    Args:
        path: the output file.

    Returns:
        The header, None if nothing is there; and the records that are whole, which are read one
        by one: of what they consist is known only to those who know the header's format.

    Raises:
        InputError: there are records without a header.
        OSError: it cannot be read.
    """
    texts = _texts(journal_of(path))
    header = next(texts, None)
    records = filter(None, texts)
    if header is None and (found := sum(1 for _ in records)):
        raise InputError(
            f"{journal_of(path)} is damaged: found {found} records without the header that tells "
            "their job; expected one in its first line. Run again without --resume."
        )
    return (json.loads(header) if header else None), map(Record.from_json, records)


def _texts(journal: Path) -> Iterator[str | None]:
    """What each line says; nothing if there is no such file."""
    with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
        for line in file:
            yield _content(line.removesuffix(b"\n"))


def _pairs(lists: list[list[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, stop) for start, stop in lists)


def _line(text: str) -> bytes:
    data = text.encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _content(line: bytes) -> str | None:
    """What a line says; None if it is torn or damaged."""
    checksum, _, data = line.partition(b" ")
    return data.decode() if checksum == b"%08x" % zlib.crc32(data) and data else None
