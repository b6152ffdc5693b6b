"""Arrays by name (.npz), the model's keyword arguments: a sample per row; the file is loaded."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from pipepar.data.readers.array_samples import NumpyRows, Rows
from pipepar.data.readers.input_format import ArrayFormat
from pipepar.errors import InputError


def _arrays(path: Path) -> dict[str, Rows]:
    damage = (ValueError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile, zlib.error)
    try:
        members = np.load(path, allow_pickle=False)
        # np.load also accepts a .npy file with this suffix.
        arrays = dict(members) if isinstance(members, np.lib.npyio.NpzFile) else None
    except damage as error:
        raise InputError(
            f"{path} cannot be read as .npz: {error}. Expected a complete archive of arrays of "
            "numbers; copy the file again, or save it again with numpy.savez(path, name=array)."
        ) from error
    if arrays is None:
        raise InputError(f"{path} contains one bare array; expected an archive. Rename it to .npy.")
    return {name: NumpyRows(array, f"{path}: {name!r}") for name, array in arrays.items()}


FORMAT = ArrayFormat(suffixes=(".npz",), arrays=_arrays)
