"""Measured times, cached on disk from job to job.

There is one JSON file for each key: model, its counted work, device, dtypes and shapes of the
inputs without the batch, weights per stage, and version of torch. Each file has the times of all
sizes of micro-batch. The files are in
``$XDG_CACHE_HOME/pipepar`` or ``~/.cache/pipepar``; for a user without a home directory, in
``pipepar-UID`` in the directory of temporary files. A damaged file is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from pipepar.files import write_whole
from pipepar.model.capture.graph import Graph

_VERSION: Final = 1

Times = Sequence[float | None]
"""Seconds of each distinct operation, in the order of the graph; None if it was not timed."""


@dataclass(frozen=True, slots=True)
class ProfileCache:
    """The times of one model on one kind of device; made by `ProfileCache.of`."""

    path: Path
    """The file, which may not exist."""
    key: dict[str, object]
    """Everything that the times depend on; stored in the file and compared."""

    @staticmethod
    def of(graph: Graph, kind: str, work: float = 0.0, weight_bytes: int = 0) -> ProfileCache:
        """Return the cache of a model on a kind of device, without reading its file.

        Args:
            graph: the captured model.
            kind: name of the device, with its number of threads.
            work: counted work of the model; differs between models with the same digest.
            weight_bytes: mean bytes of the weights of a stage; if they fit in the CPU caches,
                operations are faster.
        """
        example = [[str(t.dtype).removeprefix("torch."), *t.shape[1:]] for t in graph.example]
        key: dict[str, object] = {
            "version": _VERSION,
            "model": graph.digest,
            "inputs": example,
            "device": kind,
            "work": work,
            "weight_bytes": weight_bytes,
            "torch": torch.__version__,
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        return ProfileCache(_folder() / f"{name}.json", key)

    def read(self, micro_batch: int, operations: int) -> Times | None:
        """Return the cached times of a size of micro-batch.

        Args:
            micro_batch: samples in the micro-batch.
            operations: number of distinct operations.

        Returns:
            The times; None if the file does not have `operations` valid times of this size.
        """
        times = self._known().get(str(micro_batch))
        if isinstance(times, list) and len(times) == operations and all(map(_is_time, times)):
            return times
        return None

    def write(self, micro_batch: int, times: Times) -> None:
        """Store the times of a size of micro-batch, in addition to those of other sizes.

        Args:
            micro_batch: samples in the micro-batch.
            times: the times.

        Raises:
            OSError: the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seconds = self._known() | {str(micro_batch): list(times)}
        writer = f".{platform.node()}.{os.getpid()}"
        write_whole(self.path, json.dumps(self.key | {"seconds": seconds}, indent=1) + "\n", writer)

    def _known(self) -> dict[str, object]:
        """Return the times by size; empty if the file is missing, damaged, or of another key."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        seconds = content.pop("seconds", None)
        return seconds if content == self.key and isinstance(seconds, dict) else {}


def _folder() -> Path:
    """Return the folder of the cache, which may not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification says to ignore any other value
        return Path(base) / "pipepar"
    try:
        return Path.home() / ".cache" / "pipepar"
    except RuntimeError:  # the user has no home directory, as in some containers
        return Path(tempfile.gettempdir()) / f"pipepar-{os.getuid()}"


def _is_time(value: object) -> bool:
    """Whether a value is an element of `Times`: finite seconds above 0, or None."""
    return value is None or (isinstance(value, float) and math.isfinite(value) and value > 0)
