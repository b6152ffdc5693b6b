"""One array (.npy): a sample per row; the file is mapped into memory, not loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipepar.data.readers.array_samples import NumpyRows, Rows
from pipepar.data.readers.input_format import ArrayFormat
from pipepar.errors import InputError


def _arrays(path: Path) -> dict[str, Rows]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as .npy: {error}. Expected a complete array of numbers; "
            "copy the file again, or save it again with numpy.save(path, array)."
        ) from error
    return {"": NumpyRows(array, str(path))}


def _labels(path: Path) -> Iterator[tuple[str, object]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as .npy: {error}. Expected a complete array of integers; copy "
            "the file again, or save it again with numpy.save(path, array)."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
        found = f"{getattr(array, 'dtype', 'no array')} of shape {getattr(array, 'shape', ())}"
        raise InputError(
            f"{path} contains {found}; expected integers [samples], the numbers of the classes. "
            "Convert it with array.astype(int), or write names to a .txt file, one per line."
        )
    for row, label in enumerate(array.tolist()):
        yield f"{path}, row {row}", label


FORMAT = ArrayFormat(suffixes=(".npy",), arrays=_arrays, labels=_labels)
