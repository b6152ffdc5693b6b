"""JSON (.jsonl): a line per sample, the answer of a task, or the model's tensors by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pipepar.data.writers.line_writer import LineWriter
from pipepar.data.writers.output_format import OutputFormat
from pipepar.errors import InputError


class JsonlWriter(LineWriter):
    """Writes one JSON value per line: an object with the rows by name, or an answer.

    Floats are exact. Values that are not finite are written ``NaN``, ``Infinity`` and
    ``-Infinity``, which Python's json reads but strict JSON does not allow.
    """

    def _row_lines(self, positions: list[int], rows: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
        lists = {name: self._list(name, value) for name, value in rows.items()}
        for at in range(len(positions)):
            line = json.dumps({name: values[at] for name, values in lists.items()})
            yield line.encode() + b"\n"

    def _answer_line(self, position: int, answer: Any) -> bytes:
        try:
            return json.dumps(answer).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"output {self.path}: the result of sample {position} is a "
                f"{type(answer).__name__} that JSON cannot represent ({error}); expected numbers, "
                "strings, None, lists and dicts. Convert tensors with .tolist(), or return a dict "
                "of tensors for all samples at once."
            ) from error

    def _list(self, name: str, value: torch.Tensor) -> list[Any]:
        try:
            if value.is_complex():
                raise RuntimeError("JSON has no complex numbers")
            values: list[Any] = value.tolist()
        except RuntimeError as error:
            raise InputError(
                f"output {self.path}: {name!r} has dtype {value.dtype}, which .jsonl cannot "
                f"represent ({error}); expected real numbers. Write to a .safetensors file."
            ) from error
        return values


FORMAT = OutputFormat(suffix=".jsonl", writer=JsonlWriter, holds_answers=True)
