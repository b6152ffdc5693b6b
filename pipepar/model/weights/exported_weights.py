"""The weights of a `.pt2` archive: each one's bytes lie in a member of its own, uncompressed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from torch._export.serde.serialize import deserialize_scalar_type

from pipepar.errors import InputError
from pipepar.microbatch import TensorSpec
from pipepar.model.weights.checkpoint import Stored

_PAYLOADS: Final = "data/{kind}/model_{kind}_config.json"

# Of the zip format: a local header's size without its two fields of variable length, and where
# their lengths stand.
_LOCAL_HEADER: Final = 30
_LENGTHS_AT: Final = 26

Payload: TypeAlias = Mapping[str, Any]
"""What the archive says of one tensor."""


def exported_tensors(path: Path) -> dict[str, Stored]:
    """Where each weight of a program lies.

    Args:
        path: the .pt2 file.

    Returns:
        Places by the program's own names.

    Raises:
        InputError: the file holds no weights in a form that can be read in part.
    """
    with zipfile.ZipFile(path) as archive:
        return {
            name: stored_tensor(archive, "weights", name, payload)
            for name, payload in payloads(archive, "weights").items()
        }


def payloads(archive: zipfile.ZipFile, kind: str) -> dict[str, Payload]:
    """What an archive says of its tensors, by name.

    Args:
        archive: the archive.
        kind: "weights" or "constants".

    Raises:
        InputError: a tensor is stored as a pickle.
    """
    text = read_member(archive, _PAYLOADS.format(kind=kind))
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
    """Where one tensor of an archive lies.

    Args:
        archive: open, by its path.
        kind: "weights" or "constants".
        name: what the program calls it.
        payload: what the archive says of it.

    Raises:
        InputError: its bytes are compressed.
    """
    path = Path(archive.filename or "")
    meta = payload["tensor_meta"]
    spec = TensorSpec(
        deserialize_scalar_type(meta["dtype"]),
        tuple(size["as_int"] for size in meta["sizes"]),
        tuple(step["as_int"] for step in meta["strides"]),
    )
    entry = archive.getinfo(_full(archive, f"data/{kind}/{payload['path_name']}"))
    begin = _data_offset(path, entry) + meta["storage_offset"]["as_int"] * spec.dtype.itemsize
    return Stored(name, path, begin, spec)


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Bytes from the file's start to an entry's data; zipfile knows where its header is."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{entry.filename} in {path} is compressed; export the model again")
    with path.open("rb") as file:
        file.seek(entry.header_offset + _LENGTHS_AT)
        lengths = file.read(4)
    name, extra = (int.from_bytes(part, "little") for part in (lengths[:2], lengths[2:]))
    return entry.header_offset + _LOCAL_HEADER + name + extra


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member, named without the folder that torch puts everything into."""
    return archive.read(_full(archive, name))


def _full(archive: zipfile.ZipFile, name: str) -> str:
    """An entry's name with the folder that torch puts everything into."""
    return f"{archive.namelist()[0].partition('/')[0]}/{name}"
