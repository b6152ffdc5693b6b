"""Arrays in: a file's rows, read slice by slice."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from pipepar.data.readers.prepared import Batch, Prepare, Prepared
from pipepar.data.readers.reader import ARRAY_SUFFIXES, Reader, require_suffix
from pipepar.data.sample_set import SampleSet
from pipepar.data.unchanged_file import UnchangedFile
from pipepar.errors import InputError


def open_arrays(path: Path, prepare: Prepare | None = None, what: str = "") -> Reader:
    """Open a file of arrays whose first dimension counts the samples. Local.

    A ``.npy`` file is one positional argument and stays on disk (memory-mapped). A ``.npz`` or
    ``.safetensors`` file gives one keyword argument for each named array; the members of ``.npz``
    are loaded, the tensors of ``.safetensors`` are read slice by slice.

    Args:
        path: a ``.npy``, ``.npz`` or ``.safetensors`` file.
        prepare: makes the model's arguments of the rows: of the tensor [B, ...] that a ``.npy``
            file gives, of tensors by name otherwise; None to take them as they are.
        what: that function, as a message shall call it.

    Returns:
        A reader whose feeds have the rows in the file's order and the file's dtypes.

    Raises:
        InputError: the file is missing, damaged, of another suffix, or holds what is no array of
            rows: a 0-d array, Python objects, a dtype that torch lacks, unequal numbers of rows.
    """
    require_suffix(path, ARRAY_SUFFIXES)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        samples = _Arrays(path, {"": _open_npy(path)}, positional=True)
    else:
        arrays = _open_npz(path) if suffix == ".npz" else _open_safetensors(path)
        samples = _Arrays(path, arrays, positional=False)
    return Prepared(samples, prepare or _as_they_are, what or f"reading {path}")


def _as_they_are(rows: Any) -> Any:
    return rows


class _Rows(Protocol):
    """An array on disk or in memory, of which some rows are wanted."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int) -> torch.Tensor: ...


class _NumpyRows:
    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array
        # Torch has little-endian tensors only.
        self._dtype = array.dtype.newbyteorder("=")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    def read(self, start: int, stop: int) -> torch.Tensor:
        # A copy: the map is read-only, and a tensor must own what it may be told to change.
        return torch.from_numpy(np.array(self._array[start:stop], dtype=self._dtype, order="C"))


class _SafetensorsRows:
    def __init__(self, handle: Any, name: str) -> None:
        self._slice = handle.get_slice(name)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._slice.get_shape())

    def read(self, start: int, stop: int) -> torch.Tensor:
        tensor: torch.Tensor = self._slice[start:stop]
        return tensor


class _Arrays:
    """Rows of one or several arrays of equal length, in the file's order."""

    def __init__(self, path: Path, arrays: Mapping[str, _Rows], positional: bool) -> None:
        self._arrays = arrays
        self._steady = UnchangedFile(path)
        self._positional = positional
        _require_rows(path, arrays)
        self._count = next(iter(arrays.values())).shape[0]

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        for start in range(0, self._count, size):
            stop = min(start + size, self._count)
            if not done.covers(start, stop):
                yield self._read(start, stop)

    def example(self) -> Batch:
        if self._count:
            return self._read(0, min(2, self._count))
        empty = {name: rows.read(0, 0) for name, rows in self._arrays.items()}
        return self._batch(0, 2, {n: t.new_zeros(2, *t.shape[1:]) for n, t in empty.items()})

    def _read(self, start: int, stop: int) -> Batch:
        values = {name: rows.read(start, stop) for name, rows in self._arrays.items()}
        self._steady.check()
        return self._batch(start, stop - start, values)

    def _batch(self, start: int, count: int, values: dict[str, torch.Tensor]) -> Batch:
        return Batch(start, count, values[""] if self._positional else values)


def _open_npy(path: Path) -> _Rows:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as .npy: {error}. Expected a complete array of numbers; "
            "copy the file again, or save it again with numpy.save(path, array)."
        ) from error
    return _numpy_rows(array, str(path))


def _open_npz(path: Path) -> dict[str, _Rows]:
    damage = (ValueError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error)
    try:
        members = np.load(path, allow_pickle=False)
        # A .npy file under this suffix is loaded as one array.
        arrays = dict(members) if isinstance(members, np.lib.npyio.NpzFile) else None
    except damage as error:
        raise InputError(
            f"{path} cannot be read as .npz: {error}. Expected a complete archive of arrays of "
            "numbers; copy the file again, or save it again with numpy.savez(path, name=array)."
        ) from error
    if arrays is None:
        raise InputError(f"{path} holds one bare array; expected an archive. Rename it to .npy.")
    return {name: _numpy_rows(array, f"{path}: {name!r}") for name, array in arrays.items()}


def _open_safetensors(path: Path) -> dict[str, _Rows]:
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as .safetensors: {error}. Expected a complete file; "
            "copy it again, or save it again with safetensors.torch.save_file."
        ) from error
    names: list[str] = list(handle.keys())  # type: ignore[no-untyped-call]
    return {name: _safetensors_rows(handle, name, path) for name in names}


def _numpy_rows(array: object, where: str) -> _Rows:
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"{where} is no array; expected .npy members only. Save it with numpy.savez."
        )
    rows = _NumpyRows(array)
    try:
        if rows.shape:
            rows.read(0, 0)
    except TypeError as error:
        raise InputError(
            f"{where} has dtype {array.dtype}, which torch lacks; expected numbers or booleans. "
            "Convert it with array.astype; text belongs in a .txt or .jsonl file."
        ) from error
    return rows


def _safetensors_rows(handle: Any, name: str, path: Path) -> _Rows:
    rows = _SafetensorsRows(handle, name)
    try:
        if rows.shape:
            rows.read(0, 0)
    except (RuntimeError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        raise InputError(
            f"{path}: {name!r} cannot be read row by row: {error}. Expected a dtype of whole "
            "bytes that this torch has; save it as another dtype."
        ) from error
    return rows


def _require_rows(path: Path, arrays: Mapping[str, _Rows]) -> None:
    if not arrays:
        raise InputError(f"{path} holds no array; expected at least one. Save it with its arrays.")
    for name, rows in arrays.items():
        if not rows.shape:
            raise InputError(
                f"{path}{f': {name!r}' if name else ''} is a 0-d array; expected rows along "
                "dimension 0. Give it one value a sample, shape [samples, ...]."
            )
    counts = {name: rows.shape[0] for name, rows in arrays.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InputError(
            f"{path} holds arrays of unequal numbers of rows: {found}. Expected the same number "
            "in all, one row a sample; save arrays that belong to the same samples."
        )
