"""Outputs whose rows are of one size: a header, then each row at its place in the file."""

from __future__ import annotations

import io
import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from pipepar.data.sample_set import runs
from pipepar.data.writers.journal import Record, Trail
from pipepar.data.writers.partial import Partial, write_at
from pipepar.data.writers.row_writer import Writer, listed
from pipepar.errors import InputError


class ArrayWriter(Writer):
    """Writes rows straight to their place, which the first micro-batch tells. Local."""

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
        for start, stop in runs(positions):
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


class NpyWriter(ArrayWriter):
    """Writes the one output of a model to ``.npy``. Local."""

    def _header(self, first: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        if len(first) != 1:
            raise InputError(
                f"output {self.path}: the model returns {len(first)} values, {listed(first)}; "
                "expected exactly one for .npy. Write to a .safetensors or .jsonl file."
            )
        ((name, row),) = first.items()
        try:
            dtype = row.numpy().dtype
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"output {self.path}: {name!r} has dtype {row.dtype}, which NumPy lacks; expected "
                "one that NumPy has. Write to a .safetensors file, which keeps the dtype."
            ) from error
        header = _npy_header(dtype, (self.count, *row.shape[1:]))
        return header, {name: len(header)}

    def _empty(self) -> bytes:
        return _npy_header(np.dtype(np.float32), (0,))


class SafetensorsWriter(ArrayWriter):
    """Writes any number of named outputs to ``.safetensors``. Local."""

    def _header(self, first: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        # The library lays out one row. All rows are that layout times the number of samples, so
        # that the names of dtypes, the order and the alignment stay the library's business.
        entries = self._layout(first)
        for name in first:
            entry = entries[name]
            entry["shape"][0] *= self.count
            entry["data_offsets"] = [offset * self.count for offset in entry["data_offsets"]]
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return header, {name: len(header) + entries[name]["data_offsets"][0] for name in first}

    def _layout(self, first: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        try:
            data = save(dict(first), metadata={"format": "pt"})
        except KeyError as error:
            dtypes = ", ".join(f"{name!r} {row.dtype}" for name, row in first.items())
            raise InputError(
                f"output {self.path}: safetensors lacks the dtype {error}; found {dtypes}, "
                "expected dtypes it has. Write to a .npy file, or return another dtype."
            ) from error
        entries: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return entries

    def _empty(self) -> bytes:
        return save({}, metadata={"format": "pt"})


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


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
