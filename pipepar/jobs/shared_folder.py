"""Sends the files of a Hugging Face folder, except its weights, from rank 0 to all ranks."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from pipepar.comm.world import World
from pipepar.model.source.huggingface import dtype_of, require_config

# Bytes of the largest file that is sent; a larger one is probably weights of an unknown format.
_LARGEST: Final = 64 * 2**20
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")


@contextmanager
def replica(world: World, folder: Path) -> Iterator[Path]:
    """Yield the folder on rank 0, and a copy without weights on the other ranks. *Collective.*

    Args:
        world: all ranks.
        folder: its path on rank 0. Its subfolders and files over 64 MiB are not copied.

    Yields:
        Its path on this rank; a copy is removed when the context is left.

    Raises:
        InputError: on rank 0, which has no config.json in that folder.
        WeightsError: on rank 0: the configuration names no dtype, and the weights are damaged.
        PeerError: on the other ranks, if rank 0 raises.
    """
    text = world.together(lambda: _packed(folder) if world.is_root else "")
    text = world.broadcast(text)
    if world.is_root:
        yield folder
        return
    with TemporaryDirectory(prefix="pipepar-") as place:
        for name, content in json.loads(text).items():
            (Path(place) / name).write_bytes(base64.b64decode(content))
        yield Path(place)


def _packed(folder: Path) -> str:
    """Return the files to copy as JSON: names and contents in base64."""
    require_config(folder)
    files = [file for file in sorted(folder.iterdir()) if file.suffix not in _WEIGHTS]
    small = [file for file in files if file.is_file() and file.stat().st_size <= _LARGEST]
    content = {file.name: file.read_bytes() for file in small}
    content["config.json"] = _with_dtype(folder).encode()
    return json.dumps({name: base64.b64encode(data).decode() for name, data in content.items()})


def _with_dtype(folder: Path) -> str:
    """Return config.json with a dtype, that of the weights if the file names none."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype = dtype_of(folder, config)
    if config.dtype is None and dtype is not None:
        fields["dtype"] = str(dtype).removeprefix("torch.")
    return json.dumps(fields)
