"""Measured times, kept on disk from job to job.

A small JSON file for each model, kind of device and shape of input, in ``$XDG_CACHE_HOME/pipepar``
or ``~/.cache/pipepar``; a user without a home has them among temporary files. What is damaged, or
was made by another version, is as good as absent.
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
"""Seconds of each distinct operation, in the order of the graph; None where it was not timed."""


@dataclass(frozen=True, slots=True)
class ProfileCache:
    """The times of one model on one kind of device; made by `ProfileCache.of`."""

    path: Path
    """The file; it need not exist."""
    key: dict[str, object]
    """What the times hold for."""

    @staticmethod
    def of(graph: Graph, kind: str, work: float = 0.0, spread: int = 0) -> ProfileCache:
        """Where the times of a model are.

        Args:
            graph: the captured model.
            kind: name of the device, with the threads that it computes with.
            work: what was counted of the model; it tells layers apart whose settings do not show.
            spread: bytes of weights that a stage has; they decide what comes from a cache.
        """
        example = [[str(t.dtype).removeprefix("torch."), *t.shape[1:]] for t in graph.example]
        key: dict[str, object] = {
            "version": _VERSION,
            "model": graph.digest,
            "inputs": example,
            "device": kind,
            "work": work,
            "spread": spread,
            "torch": torch.__version__,
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        return ProfileCache(_folder() / f"{name}.json", key)

    def read(self, micro_batch: int, operations: int) -> Times | None:
        """The times for so many samples.

        Args:
            micro_batch: samples.
            operations: how many distinct ones there are.

        Returns:
            None if they are not known.
        """
        times = self._known().get(str(micro_batch))
        if isinstance(times, list) and len(times) == operations and all(map(_is_time, times)):
            return times
        return None

    def write(self, micro_batch: int, times: Times) -> None:
        """Keep the times for so many samples, beside those for others.

        Raises:
            OSError: the file system refuses.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seconds = self._known() | {str(micro_batch): list(times)}
        writer = f".{platform.node()}.{os.getpid()}"
        write_whole(self.path, json.dumps(self.key | {"seconds": seconds}, indent=1) + "\n", writer)

    def _known(self) -> dict[str, object]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        seconds = content.pop("seconds", None)
        return seconds if content == self.key and isinstance(seconds, dict) else {}


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # any other is to be ignored, says its specification
        return Path(base) / "pipepar"
    try:
        return Path.home() / ".cache" / "pipepar"
    except RuntimeError:  # a container's user who has none
        return Path(tempfile.gettempdir()) / f"pipepar-{os.getuid()}"


def _is_time(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isfinite(value) and value > 0)
