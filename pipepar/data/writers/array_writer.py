"""Outputs whose rows are of one size: a header, then each row at its place in the file."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from pipepar.data.sample_set import consecutive_parts
from pipepar.data.writers.journal import Record, Trail
from pipepar.data.writers.partial import Partial, write_at
from pipepar.data.writers.row_writer import RowWriter
from pipepar.errors import InputError


class ArrayWriter(RowWriter):
    """Writes rows straight to their place, which the first micro-batch tells."""

    _first: Mapping[str, torch.Tensor] | None = None
    """Rows like [1, ...], as the first micro-batch had them, that of an earlier run too."""
    _offsets: Mapping[str, int] | None = None
    """Where each value starts, in bytes, once the header is written."""

    @abstractmethod
    def _header(self, first: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        """Return the header, and where each value starts, in bytes, for rows like [1, ...]."""

    @abstractmethod
    def _empty(self) -> bytes:
        """Return the whole file for an input without samples."""

    def _store(self, trail: Trail, positions: list[int], rows: dict[str, torch.Tensor]) -> Any:
        first = self._first or _first_of(rows)
        for name, value in rows.items():
            self._check_alike(positions[0], name, value, first.get(name))
        self._first = first
        if self._offsets is None:
            header, self._offsets = self._header(first)
            trail.write(header, 0)
        for name, value in rows.items():
            self._place(trail, positions, value, self._offsets[name])
        return _layout_of(first)

    def _blank(self, count: int) -> Mapping[str, torch.Tensor]:
        if self._first is None:
            raise InputError(
                f"output {self.path}: no sample has a result, so nothing tells what its rows are "
                "like; expected one at least. Look at what became of the samples."
            )
        return {name: _nothing_like(row, count) for name, row in self._first.items()}

    def _place(self, trail: Trail, positions: list[int], value: torch.Tensor, offset: int) -> None:
        flat = value.resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().data
        size = len(data) // len(positions)
        for start, stop in consecutive_parts(positions):
            trail.write(data[start * size : stop * size], offset + positions[start] * size)

    def _restore(self, record: Record, data: bytes) -> bool:
        first = _first_from(record.layout)
        if self._first is not None and _layout_of(self._first) != record.layout:
            return False
        self._first, self._names = first, list(first)
        return True

    def _finish(self, partial: Partial) -> None:
        if not self.count:
            write_at(partial.file, self._empty(), 0)
        partial.commit()

    def _check_alike(
        self, sample: int, name: str, value: torch.Tensor, first: torch.Tensor | None
    ) -> None:
        if first is None or value.shape[1:] != first.shape[1:] or value.dtype != first.dtype:
            raise InputError(
                f"output {self.path}: sample {sample} has a row of {_row(value)} in {name!r}; "
                f"expected {'none' if first is None else _row(first)}, like the rows before it. "
                "Write to a .jsonl file, whose rows may differ."
            )


def _row(value: torch.Tensor) -> str:
    return f"shape {tuple(value.shape[1:])} and dtype {value.dtype}"


def _first_of(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.new_empty(1, *value.shape[1:]) for name, value in rows.items()}


def _layout_of(first: Mapping[str, torch.Tensor]) -> list[Any]:
    """What `_first_from` makes the same rows of, as JSON."""
    return [
        [name, str(row.dtype).removeprefix("torch."), *row.shape[1:]] for name, row in first.items()
    ]


def _first_from(layout: list[Any]) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(1, *shape, dtype=getattr(torch, dtype)) for name, dtype, *shape in layout
    }


def _nothing_like(row: torch.Tensor, count: int) -> torch.Tensor:
    value = math.nan if row.is_floating_point() or row.is_complex() else 0
    return row.new_full((count, *row.shape[1:]), value)
