"""Writer of outputs with one line per sample; lines may differ in length."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from pipepar.data.writers.journal import Record, TrackedFile
from pipepar.data.writers.partial import Partial, partial_of, read_at, rename_synced, write_at
from pipepar.data.writers.row_writer import RowWriter
from pipepar.data.writers.unfinished import Resumable
from pipepar.errors import InputError

# Bytes that are copied at a time at the end.
_COPY_BYTES: Final = 16 << 20


class LineWriter(RowWriter):
    """Appends lines to the partial file as they arrive, and writes a sorted copy at the end."""

    def __init__(self, path: Path, count: int, resumable: Resumable | None = None) -> None:
        """Make a writer; see `RowWriter`."""
        super().__init__(path, count, resumable)
        self._end = 0
        # An index of contiguous lines of consecutive samples: first sample, offset and size in
        # bytes. One entry per line would need much memory for large inputs.
        self._firsts, self._offsets, self._sizes = array("q"), array("q"), array("q")
        self._next = -1  # the sample that would extend the last entry

    @abstractmethod
    def _row_lines(self, positions: list[int], rows: Mapping[str, torch.Tensor]) -> Iterable[bytes]:
        """Return a line for each row, ended by ``\\n`` and without another ``\\n`` or ``\\r``.

        Args:
            positions: positions of the samples in the input, for messages.
            rows: the model's outputs by name, each [B, ...] on the host, in the same order in every
                call.

        Raises:
            InputError: the format does not support a value.
        """

    @abstractmethod
    def _answer_line(self, position: int, answer: Any) -> bytes:
        """Return a line for one sample, as `_row_lines` does.

        Args:
            position: position of the sample in the input, for messages.
            answer: a JSON value; None for a sample without a result.

        Raises:
            InputError: the format does not support the value.
        """

    def _blank_rows(self, count: int) -> list[Any]:
        return [None] * count

    def _write_rows(
        self, file: TrackedFile, positions: list[int], rows: dict[str, torch.Tensor]
    ) -> Any:
        # In the order of the first micro-batch, so that all lines have the same order of fields.
        ordered = {name: rows[name] for name in self._names}
        self._append(file, positions, list(self._row_lines(positions, ordered)))
        return self._names

    def _write_answers(self, file: TrackedFile, positions: list[int], answers: list[Any]) -> None:
        pairs = zip(positions, answers, strict=True)
        lines = [self._answer_line(position, answer) for position, answer in pairs]
        self._append(file, positions, lines)

    def _append(self, file: TrackedFile, positions: Sequence[int], lines: list[bytes]) -> None:
        file.write(b"".join(lines), self._end)
        self._end = self._index(positions, lines, self._end)

    def _index(self, positions: Sequence[int], lines: list[bytes], offset: int) -> int:
        """Add contiguous lines that start at an offset to the index; return the end offset."""
        for position, line in zip(positions, lines, strict=True):
            if position == self._next and offset == self._offsets[-1] + self._sizes[-1]:
                self._sizes[-1] += len(line)
            else:
                self._firsts.append(position)
                self._offsets.append(offset)
                self._sizes.append(len(line))
            self._next = position + 1
            offset += len(line)
        return offset

    def _restore(self, record: Record, data: bytes) -> bool:
        lines, names = data.splitlines(keepends=True), record.layout
        if len(lines) != len(record.samples) or len(record.byte_ranges) != 1:
            return False
        if names is not None:  # None for answers
            if self._names and names != self._names:
                return False
            self._names = names
        self._end = max(self._end, self._index(record.samples, lines, record.byte_ranges[0][0]))
        return True

    def _finish(self, partial: Partial) -> None:
        partial.require_own()
        hidden = self.path.with_name(f".{self.path.name}.sorted")
        try:
            with FileIO(hidden, "w") as file:
                end = 0
                for part in self._sorted_lines(partial):
                    write_at(file, part, end)
                    end += len(part)
                rename_synced(file, hidden, self.path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise

    def _sorted_lines(self, partial: Partial) -> Iterator[bytes]:
        """Yield the bytes of all lines in the order of the samples, at most 16 MiB at a time."""
        for at in np.argsort(self._firsts):
            offset, end = self._offsets[at], self._offsets[at] + self._sizes[at]
            for begin in range(offset, end, _COPY_BYTES):
                yield self._read(partial, begin, min(_COPY_BYTES, end - begin))

    def _read(self, partial: Partial, offset: int, size: int) -> bytes:
        data = read_at(partial.file, offset, size)
        if len(data) < size:
            raise InputError(
                f"output {self.path}: found {len(data)} bytes of lines at {offset} in "
                f"{partial_of(self.path)}; expected the {size} that were written. Keep other "
                "programs from this file, and run again without --resume."
            )
        return data
