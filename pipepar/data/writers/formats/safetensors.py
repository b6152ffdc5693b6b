"""The model's tensors by name (.safetensors), with a row per sample in each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

from pipepar.data.writers.array_writer import ArrayWriter
from pipepar.data.writers.output_format import OutputFormat
from pipepar.errors import InputError


class SafetensorsWriter(ArrayWriter):
    """Writes any number of named tensors to ``.safetensors``."""

    def _header(self, templates: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, int]]:
        # The library makes the header for one row, so it chooses the names of dtypes, the order
        # and the alignment. Sizes and offsets are then multiplied by the number of samples.
        entries = self._entries(templates)
        for name in templates:
            entry = entries[name]
            entry["shape"][0] *= self.count
            entry["data_offsets"] = [offset * self.count for offset in entry["data_offsets"]]
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return header, {name: len(header) + entries[name]["data_offsets"][0] for name in templates}

    def _entries(self, templates: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return the header of a file with one row: shapes, dtypes, offsets; and the metadata."""
        try:
            data = save(dict(templates), metadata={"format": "pt"})
        except KeyError as error:
            dtypes = ", ".join(f"{name!r} {row.dtype}" for name, row in templates.items())
            raise InputError(
                f"output {self.path}: safetensors lacks the dtype {error}; found {dtypes}, "
                "expected dtypes of safetensors. Write to a .npy file, or return another dtype."
            ) from error
        entries: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return entries

    def _empty(self) -> bytes:
        return save({}, metadata={"format": "pt"})


FORMAT = OutputFormat(suffix=".safetensors", writer=SafetensorsWriter)
