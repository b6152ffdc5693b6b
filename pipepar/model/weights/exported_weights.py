"""The weights in a `.pt2` archive; each one is a separate uncompressed member."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from pipepar.errors import InputError
from pipepar.microbatch import TensorSpec
from pipepar.model.compat.torch_internals import payload_member, serialized_dtype
from pipepar.model.weights.checkpoint import Stored

# Bytes of a zip local header without its two fields of variable length, and the offset of the
# lengths of these fields.
_LOCAL_HEADER: Final = 30
_LENGTHS_OFFSET: Final = 26

Payload: TypeAlias = Mapping[str, Any]
"""The archive's description of one tensor."""


def exported_tensors(path: Path) -> dict[str, Stored]:
    """Return the location of each weight of a program.

    Args:
        path: the .pt2 file.

    Returns:
        Locations by the program's own names.

    Raises:
        InputError: a weight is a pickle or is compressed, so it cannot be read by itself.
    """
    with zipfile.ZipFile(path) as archive:
        return {
            name: stored_tensor(archive, "weights", name, payload)
            for name, payload in payloads(archive, "weights").items()
        }


def payloads(archive: zipfile.ZipFile, kind: str) -> dict[str, Payload]:
    """Return the archive's descriptions of its tensors, by name.

    Args:
        archive: the archive.
        kind: "weights" or "constants".

    Raises:
        InputError: a tensor is stored as a pickle.
    """
    text = read_member(archive, payload_member(kind))
    config: dict[str, Payload] = json.loads(text)["config"]
    for name, payload in config.items():
        if payload["use_pickle"] or payload["tensor_meta"] is None:
            raise InputError(
                f"{name} in {archive.filename} is a pickled object, which could run code when it "
                f"is read, expected a plain tensor; export the model without tensor subclasses "
                f"and custom objects"
            )
    return config


def stored_tensor(archive: zipfile.ZipFile, kind: str, name: str, payload: Payload) -> Stored:
    """Return the location of one tensor of an archive.

    Args:
        archive: opened by its path.
        kind: "weights" or "constants".
        name: the program's name of the tensor.
        payload: the archive's description of the tensor.

    Raises:
        InputError: its bytes are compressed.
    """
    path = Path(archive.filename or "")
    meta = payload["tensor_meta"]
    spec = TensorSpec(
        serialized_dtype(meta["dtype"]),
        tuple(size["as_int"] for size in meta["sizes"]),
        tuple(step["as_int"] for step in meta["strides"]),
    )
    entry = archive.getinfo(_full(archive, f"data/{kind}/{payload['path_name']}"))
    begin = _data_offset(path, entry) + meta["storage_offset"]["as_int"] * spec.dtype.itemsize
    return Stored(name, path, begin, spec)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return the offset of a member's data in the file; zipfile gives only that of its header."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{entry.filename} in {path} is compressed; export the model again")
    with path.open("rb") as file:
        file.seek(entry.header_offset + _LENGTHS_OFFSET)
        lengths = file.read(4)
    name, extra = (int.from_bytes(part, "little") for part in (lengths[:2], lengths[2:]))
    return entry.header_offset + _LOCAL_HEADER + name + extra


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the bytes of a member, named relative to the archive's top folder."""
    return archive.read(_full(archive, name))


def _full(archive: zipfile.ZipFile, name: str) -> str:
    """Return a member's name with the archive's top folder, which torch adds to all names."""
    return f"{archive.namelist()[0].partition('/')[0]}/{name}"
