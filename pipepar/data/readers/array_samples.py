"""Arrays as samples: each row is a sample; the rows of one batch are read at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipepar.data.readers.prepared import Batch
from pipepar.data.sample_set import SampleSet
from pipepar.data.unchanged_file import UnchangedFile
from pipepar.errors import InputError


class Rows(Protocol):
    """An array on disk or in memory, read in ranges of rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return rows as a tensor [stop - start, ...], a copy that may be modified."""


class NumpyRows:
    """The rows of a NumPy array, which may be mapped into memory."""

    def __init__(self, array: object, where: str) -> None:
        """Check that torch supports the dtype of the array.

        Args:
            array: the content of the file, or one of its arrays.
            where: the file, and the array's name if it has one, for messages.

        Raises:
            InputError: it is not an array, or torch lacks its dtype (not checked if it is 0-d).
        """
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"{where} is not an array; expected .npy members only. Save it with numpy.savez."
            )
        self._array = array
        # Torch supports the native byte order only.
        self._dtype = array.dtype.newbyteorder("=")
        try:
            if self.shape:
                self.read(0, 0)
        except TypeError as error:
            raise InputError(
                f"{where} has dtype {array.dtype}, which torch lacks; expected numbers or "
                "booleans. Convert it with array.astype; text belongs in a .txt or .jsonl file."
            ) from error

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return tuple(self._array.shape)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return a copy of rows in native byte order; a mapped file itself is read-only."""
        return torch.from_numpy(np.array(self._array[start:stop], dtype=self._dtype, order="C"))


class ArraySamples:
    """The rows of arrays with the same number of rows, in the file's order."""

    def __init__(self, path: Path, arrays: Mapping[str, Rows]) -> None:
        """Check that all arrays have the same number of rows.

        Args:
            path: the file, which must not change while it is read.
            arrays: its arrays by name, the model's keyword arguments; or one array under the name
                ``""``, its only positional argument.

        Raises:
            InputError: there is no array, an array is 0-d, or the numbers of rows differ.
        """
        self._arrays = arrays
        self._file = UnchangedFile(path)
        _require_rows(path, arrays)
        self._count = next(iter(arrays.values())).shape[0]

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        """Yield batches of `size` rows, the last may be smaller; see `Samples.batches`.

        Raises:
            InputError: the file has changed.
        """
        for start in range(0, self._count, size):
            stop = min(start + size, self._count)
            if not done.covers(start, stop):
                yield self._read(start, stop)

    def example(self) -> Batch:
        """Return up to 2 rows; 2 rows of zeros for an empty file."""
        if self._count:
            return self._read(0, min(2, self._count))
        empty = {name: rows.read(0, 0) for name, rows in self._arrays.items()}
        return self._batch(0, 2, {n: t.new_zeros(2, *t.shape[1:]) for n, t in empty.items()})

    def _read(self, start: int, stop: int) -> Batch:
        values = {name: rows.read(start, stop) for name, rows in self._arrays.items()}
        self._file.check()
        return self._batch(start, stop - start, values)

    def _batch(self, start: int, count: int, values: dict[str, torch.Tensor]) -> Batch:
        content: Any = values[""] if list(values) == [""] else values
        return Batch(start, count, content)


def _require_rows(path: Path, arrays: Mapping[str, Rows]) -> None:
    if not arrays:
        raise InputError(
            f"{path} contains no array; expected at least one. Save it with its arrays."
        )
    for name, rows in arrays.items():
        if not rows.shape:
            raise InputError(
                f"{path}{f': {name!r}' if name else ''} is a 0-d array; expected rows along "
                "dimension 0. Save one value per sample, shape [samples, ...]."
            )
    counts = {name: rows.shape[0] for name, rows in arrays.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise InputError(
            f"{path} contains arrays with different numbers of rows: {found}. Expected the same "
            "number in all, one row per sample. Save arrays that belong to the same samples."
        )
