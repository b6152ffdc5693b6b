"""Writer of outputs with rows of one size: a header, then each row at its fixed offset."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from pipepar.data.sample_set import consecutive_parts
from pipepar.data.writers.journal import Record, TrackedFile
from pipepar.data.writers.partial import Partial, write_at
from pipepar.data.writers.row_writer import RowWriter
from pipepar.errors import InputError


class ArrayWriter(RowWriter):
    """Writes each row to its final offset, which follows from the shapes of the first rows."""

    _templates: Mapping[str, torch.Tensor] | None = None
    """For each value a tensor [1, ...] with the shape and dtype of a row; its content is undefined.
    None until rows are written or restored."""
    _offsets: Mapping[str, int] | None = None
    """The offset of each value in bytes; None until this run writes the header."""

    @abstractmethod
    def _header(self, templates: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        """Return the header and the offset of each value in bytes.

        Args:
            templates: for each value a tensor [1, ...] with the shape and dtype of a row.

        Raises:
            InputError: the format does not support the rows.
        """

    @abstractmethod
    def _empty(self) -> bytes:
        """Return the whole file for an input without samples."""

    def _write_rows(
        self, file: TrackedFile, positions: list[int], rows: dict[str, torch.Tensor]
    ) -> Any:
        templates = self._templates or _templates_of(rows)
        for name, value in rows.items():
            self._check_template(positions[0], name, value, templates.get(name))
        self._templates = templates
        if self._offsets is None:
            header, self._offsets = self._header(templates)
            file.write(header, 0)
        for name, value in rows.items():
            self._write_value(file, positions, value, self._offsets[name])
        return _layout_of(templates)

    def _blank_rows(self, count: int) -> Mapping[str, torch.Tensor]:
        if self._templates is None:
            raise InputError(
                f"output {self.path}: no sample has a result, so the shape and dtype of a row are "
                "unknown; expected at least one result. Check why the samples failed."
            )
        return {name: _blank_like(row, count) for name, row in self._templates.items()}

    def _write_value(
        self, file: TrackedFile, positions: list[int], value: torch.Tensor, offset: int
    ) -> None:
        flat = value.resolve_conj().resolve_neg().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().data
        size = len(data) // len(positions)
        for start, stop in consecutive_parts(positions):
            file.write(data[start * size : stop * size], offset + positions[start] * size)

    def _restore(self, record: Record, data: bytes) -> bool:
        templates = _templates_from(record.layout)
        if self._templates is not None and _layout_of(self._templates) != record.layout:
            return False
        self._templates, self._names = templates, list(templates)
        return True

    def _finish(self, partial: Partial) -> None:
        if not self.count:
            write_at(partial.file, self._empty(), 0)
        partial.commit()

    def _check_template(
        self, sample: int, name: str, value: torch.Tensor, template: torch.Tensor | None
    ) -> None:
        found, expected = _described(value), "none" if template is None else _described(template)
        if found != expected:
            raise InputError(
                f"output {self.path}: sample {sample} has a row of {found} in {name!r}; expected "
                f"{expected}, like the rows before it. Write to a .jsonl file, whose rows may "
                "differ."
            )


def _described(value: torch.Tensor) -> str:
    return f"shape {tuple(value.shape[1:])} and dtype {value.dtype}"


def _templates_of(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.new_empty(1, *value.shape[1:]) for name, value in rows.items()}


def _layout_of(templates: Mapping[str, torch.Tensor]) -> list[Any]:
    """Return the names, dtypes and shapes as a JSON value; `_templates_from` is the inverse."""
    return [
        [name, str(row.dtype).removeprefix("torch."), *row.shape[1:]]
        for name, row in templates.items()
    ]


def _templates_from(layout: list[Any]) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(1, *shape, dtype=getattr(torch, dtype)) for name, dtype, *shape in layout
    }


def _blank_like(row: torch.Tensor, count: int) -> torch.Tensor:
    value = math.nan if row.is_floating_point() or row.is_complex() else 0
    return row.new_full((count, *row.shape[1:]), value)
