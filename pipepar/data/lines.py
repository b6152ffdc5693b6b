"""Outputs of one JSON value a line, whose rows may differ in shape."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from pipepar.data.partial import write_at
from pipepar.data.writer import Writer
from pipepar.errors import InputError


class JsonWriter(Writer):
    """Spools lines in the order they come, and copies them in the input's order. Local."""

    def __init__(self, path: Path, count: int) -> None:
        """Take note of the file.

        Args:
            path: the output file.
            count: number of samples.
        """
        super().__init__(path, count)
        self._spool: FileIO | None = None
        self._end = 0
        self._offsets = array("q", bytes(8 * count))
        self._lengths = array("q", bytes(8 * count))

    def _store(self, file: FileIO, positions: list[int], rows: dict[str, torch.Tensor]) -> None:
        self._append(positions, list(self._lines(len(positions), rows)))

    def _store_answers(self, positions: list[int], answers: list[Any]) -> None:
        pairs = zip(positions, answers, strict=True)
        self._append(positions, [self._line(position, answer) for position, answer in pairs])

    def _append(self, positions: list[int], lines: list[bytes]) -> None:
        write_at(self._open_spool(), b"".join(lines), self._end)
        for position, line in zip(positions, lines, strict=True):
            self._offsets[position] = self._end
            self._lengths[position] = len(line)
            self._end += len(line)

    def _finish(self, file: FileIO) -> None:
        end = 0
        for offset, length in zip(self._offsets, self._lengths, strict=True):
            write_at(file, os.pread(self._open_spool().fileno(), length, offset), end)
            end += length

    def _release(self) -> None:
        if self._spool is not None:
            self._spool.close()

    def _open_spool(self) -> FileIO:
        if self._spool is None:
            # Without a name: nothing is left of it, however the run ends.
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            os.unlink(name)
            self._spool = FileIO(handle, "r+")
        return self._spool

    def _lines(self, count: int, rows: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
        lists = {name: self._list(name, rows[name]) for name in self._names}
        for at in range(count):
            line = json.dumps({name: values[at] for name, values in lists.items()})
            yield line.encode() + b"\n"

    def _line(self, position: int, answer: Any) -> bytes:
        try:
            return json.dumps(answer).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"output {self.path}: sample {position} got a {type(answer).__name__} that JSON "
                f"cannot hold ({error}); expected numbers, strings, None, lists and dicts. Convert "
                "tensors with .tolist(), or return a dict of tensors for all samples at once."
            ) from error

    def _list(self, name: str, value: torch.Tensor) -> list[Any]:
        try:
            if value.is_complex():
                raise RuntimeError("JSON has no complex numbers")
            values: list[Any] = value.tolist()
        except RuntimeError as error:
            raise InputError(
                f"output {self.path}: {name!r} has dtype {value.dtype}, which .jsonl cannot hold "
                f"({error}); expected real numbers. Write to a .safetensors file."
            ) from error
        return values
