"""Outputs of one line a sample, whose lines differ in length."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from pipepar.data.writers.journal import Record, Trail
from pipepar.data.writers.partial import Partial, partial_of, put_under, read_at, write_at
from pipepar.data.writers.row_writer import RowWriter
from pipepar.data.writers.unfinished import Resumable
from pipepar.errors import InputError

# Bytes that are copied at a time.
_PIECE: Final = 16 << 20


class LineWriter(RowWriter):
    """Keeps lines in the order they come, and copies them in the input's order."""

    def __init__(self, path: Path, count: int, resumable: Resumable | None = None) -> None:
        """As every writer."""
        super().__init__(path, count, resumable)
        self._end = 0
        # Lines of consecutive samples that lie one after the other count as one stretch: of the
        # first sample, where it begins, and its bytes. An input may have very many samples.
        self._firsts, self._offsets, self._sizes = array("q"), array("q"), array("q")
        self._next = -1  # the sample that would continue the last stretch

    @abstractmethod
    def _row_lines(self, positions: list[int], rows: Mapping[str, torch.Tensor]) -> Iterable[bytes]:
        """Return a line for each row, ended by ``\\n`` and without another ``\\n`` or ``\\r``.

        Args:
            positions: of the samples, for messages.
            rows: the model's outputs by name, each [B, ...] on the host, in the same order in every
                call.

        Raises:
            InputError: the format cannot hold a value.
        """

    @abstractmethod
    def _answer_line(self, position: int, answer: Any) -> bytes:
        """Return a line for one sample, as `_row_lines` does.

        Args:
            position: of the sample, for messages.
            answer: a JSON value; None for a sample without a result.

        Raises:
            InputError: the format cannot hold the value.
        """

    def _blank(self, count: int) -> list[Any]:
        return [None] * count

    def _store(self, trail: Trail, positions: list[int], rows: dict[str, torch.Tensor]) -> Any:
        # In the order of the first micro-batch, so that all lines are alike.
        ordered = {name: rows[name] for name in self._names}
        self._append(trail, positions, list(self._row_lines(positions, ordered)))
        return self._names

    def _store_answers(self, trail: Trail, positions: list[int], answers: list[Any]) -> None:
        pairs = zip(positions, answers, strict=True)
        lines = [self._answer_line(position, answer) for position, answer in pairs]
        self._append(trail, positions, lines)

    def _append(self, trail: Trail, positions: Sequence[int], lines: list[bytes]) -> None:
        trail.write(b"".join(lines), self._end)
        self._end = self._note(positions, lines, self._end)

    def _note(self, positions: Sequence[int], lines: list[bytes], offset: int) -> int:
        """Remember where the lines are; return where the last of them ends."""
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
        if len(lines) != len(record.samples) or len(record.ranges) != 1:
            return False
        if names is not None:  # answers have none
            if self._names and names != self._names:
                return False
            self._names = names
        self._end = max(self._end, self._note(record.samples, lines, record.ranges[0][0]))
        return True

    def _finish(self, partial: Partial) -> None:
        partial.require_own()
        hidden = self.path.with_name(f".{self.path.name}.sorted")
        try:
            with FileIO(hidden, "w") as file:
                end = 0
                for piece in self._pieces(partial):
                    write_at(file, piece, end)
                    end += len(piece)
                put_under(file, hidden, self.path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise

    def _pieces(self, partial: Partial) -> Iterator[bytes]:
        """All lines in the input's order."""
        for at in np.argsort(self._firsts):
            offset, end = self._offsets[at], self._offsets[at] + self._sizes[at]
            for begin in range(offset, end, _PIECE):
                yield self._read(partial, begin, min(_PIECE, end - begin))

    def _read(self, partial: Partial, offset: int, size: int) -> bytes:
        data = read_at(partial.file, offset, size)
        if len(data) < size:
            raise InputError(
                f"output {self.path}: found {len(data)} bytes of lines at {offset} in "
                f"{partial_of(self.path)}; expected the {size} that were written. Keep others "
                "from this file, and run again without --resume."
            )
        return data
