"""Tensors by name (.safetensors), the model's keyword arguments: a sample per row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipepar.data.readers.array_samples import Rows
from pipepar.data.readers.input_format import ArrayFormat
from pipepar.errors import InputError


class _SliceRows:
    """One tensor, of which only the requested rows are read."""

    def __init__(self, handle: Any, name: str) -> None:
        self._slice = handle.get_slice(name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._slice.get_shape())

    def read(self, start: int, stop: int) -> torch.Tensor:
        tensor: torch.Tensor = self._slice[start:stop]
        return tensor


def _arrays(path: Path) -> dict[str, Rows]:
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as .safetensors: {error}. Expected a complete file; "
            "copy it again, or save it again with safetensors.torch.save_file."
        ) from error
    names: list[str] = list(handle.keys())  # type: ignore[no-untyped-call]
    return {name: _rows(handle, name, path) for name in names}


def _rows(handle: Any, name: str, path: Path) -> Rows:
    rows = _SliceRows(handle, name)
    try:
        if rows.shape:
            rows.read(0, 0)
    except (RuntimeError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{path}: {name!r} cannot be read row by row: {error}. Expected a dtype of whole "
            "bytes that this version of torch supports; save it as another dtype."
        ) from error
    return rows


FORMAT = ArrayFormat(suffixes=(".safetensors",), arrays=_arrays)
