"""Reads the headers of checkpoint files: safetensors files, and files that `torch.save` wrote."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from pipepar.errors import WeightsError
from pipepar.microbatch import TensorSpec
from pipepar.model.compat.torch_internals import checkpoint_offset
from pipepar.model.weights.checkpoint import Checkpoint, Stored
from pipepar.model.weights.exported_weights import exported_tensors

_TORCH_SUFFIXES: Final = (".bin", ".pt", ".pth")

# The limit of the safetensors library.
_LONGEST_HEADER: Final = 100_000_000

_LFS_POINTER: Final = b"version https://git-lfs"

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: read the locations of its tensors, and no values.

    Args:
        path: a .safetensors file, a .bin, .pt or .pth file that `torch.save` wrote, or the
            .index.json of several of one kind.

    Returns:
        The checkpoint.

    Raises:
        WeightsError: a file is missing, damaged or of another kind. Shards of an index are opened
            later, when a tensor is located.
    """
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}, expected a checkpoint: .safetensors, "
            f"{', '.join(_TORCH_SUFFIXES)}, or the index of several files; check the path, or copy "
            f"the whole folder"
        )
    _refuse_pointer(path)
    if path.suffix == ".json":
        file_of = _shard_of_each(path)
        kinds = {file.suffix for file in file_of.values()} or {".safetensors"}
        return Checkpoint(path, file_of, _header_of(path, *kinds))
    header = _header_of(path, path.suffix)
    contents = header(path)
    return Checkpoint(path, dict.fromkeys(contents, path), lambda _: contents)


def _refuse_pointer(path: Path) -> None:
    """Refuse the small text file that a clone without Git LFS has instead of a large file."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise WeightsError(
                f"{path} is a Git LFS pointer, expected the file itself; fetch it with git lfs pull"
            )


def _header_of(path: Path, *suffixes: str) -> Callable[[Path], Mapping[str, Stored]]:
    if suffixes == (".safetensors",):
        return _safetensors_header
    if suffixes == (".pt2",):
        return exported_tensors
    if set(suffixes) <= set(_TORCH_SUFFIXES):
        return _torch_header
    raise WeightsError(
        f"{path} is in {', '.join(sorted(suffixes))} files, expected .safetensors, "
        f"{', '.join(_TORCH_SUFFIXES)} or an index of them; save the weights "
        f"with safetensors.torch.save_file"
    )


def _shard_of_each(path: Path) -> dict[str, Path]:
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        index = {str(name): path.parent / str(file) for name, file in shards}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{path} is not an index of weight files ({type(error).__name__}: {error}), expected "
            f"an object with a weight_map; copy it again from its source"
        ) from error
    for file in sorted(set(index.values())):
        if not file.is_file():
            raise WeightsError(f"{path} names {file}, which does not exist; copy that shard too")
    return index


def _safetensors_header(path: Path) -> dict[str, Stored]:
    """Parse the header as the specification of the safetensors format describes it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(file.read(length))
        size = path.stat().st_size
        entries.pop("__metadata__", None)
        return {
            name: _safetensors_entry(path, name, entry, 8 + length, size)
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors: {error}; it may be truncated: compare its "
            f"size with its source and copy it again"
        ) from error


def _safetensors_entry(path: Path, name: str, entry: Any, start: int, size: int) -> Stored:
    begin, end = entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise WeightsError(
            f"{name} in {path} has dtype {entry['dtype']}, which torch lacks, expected one of "
            f"{', '.join(_DTYPES)}; convert the checkpoint"
        )
    stored = Stored(name, path, start + begin, _contiguous(dtype, entry["shape"]))
    if begin < 0 or end - begin != stored.nbytes:
        raise WeightsError(
            f"{name} in {path} has bytes {begin} to {end}, expected {stored.nbytes} for shape "
            f"{stored.spec.shape} of {entry['dtype']}; the file is damaged: copy it again"
        )
    if start + end > size:
        raise WeightsError(
            f"{name} in {path} ends at byte {start + end}, the file at {size}; it is truncated: "
            f"compare its size with its source and copy it again"
        )
    return stored


def _contiguous(dtype: torch.dtype, shape: list[int]) -> TensorSpec:
    return TensorSpec.of(torch.empty(shape, dtype=dtype, device="meta"))


def _torch_header(path: Path) -> dict[str, Stored]:
    """Return the locations of a state dict's tensors, which torch records when it loads to meta."""
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} contains more than tensors, which could run code when it is read; save it "
            f"again with torch.save(model.state_dict(), path), or with safetensors"
        ) from error
    except NotImplementedError as error:  # torch 2.14 cannot validate sparse tensors on meta
        raise WeightsError(
            f"a tensor in {path} is sparse or quantized, expected plain tensors; save it dense or "
            f"dequantized"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as a file of torch.save: {_first_line(error)}; it may be "
            f"truncated: compare its size with its source and copy it again"
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{path} contains a {type(state).__name__}, expected a state dict: names and tensors; "
            f"save it with torch.save(model.state_dict(), path)"
        )
    tensors = {str(n): tensor for n, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    if state and not tensors:
        raise WeightsError(
            f"{path} contains {', '.join(map(str, state))}, expected names of tensors; save only "
            f"the state dict, not a dict that contains it"
        )
    return {name: _torch_entry(path, name, tensor) for name, tensor in tensors.items()}


def _torch_entry(path: Path, name: str, tensor: torch.Tensor) -> Stored:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        raise WeightsError(
            f"{name} in {path} is sparse, quantized or a lazy conjugate, expected a plain tensor; "
            f"save it dense, dequantized, or with resolve_conj()"
        )
    offset = checkpoint_offset(tensor)
    if offset is None:
        raise WeightsError(
            f"{path} is in the format that torch wrote before version 1.6, expected one that can "
            f"be read in parts; load it with torch and save it again with safetensors"
        )
    begin = offset + int(tensor.storage_offset()) * tensor.dtype.itemsize
    return Stored(name, path, begin, TensorSpec.of(tensor))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
