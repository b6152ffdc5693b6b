"""The model and the inputs of the disturbed jobs: a byte-level text encoder."""

from __future__ import annotations

import os
import random
import string
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from benchmarks.shared.encoder import Layer
from pipepar.comm.group.launcher import launcher_rank

FAILURE_FILE: Final = "PIPEPAR_FAULTS_FAILURE_FILE"
"""An environment variable with a path; the layers of rank R raise once the file PATH.R exists."""
LENGTH: Final = 32
"""The bytes of a sample: texts are padded or cut."""

_SIZE: Final = 256
_LAYERS: Final = 6


class FailingLayer(Layer):
    """An encoder layer that fails once its failure file exists."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of the tokens, [B, S, size] to [B, S, size].

        Raises:
            RuntimeError: the failure file exists.
        """
        path = os.environ.get(FAILURE_FILE)
        if path and os.path.exists(f"{path}.{launcher_rank()}"):
            raise RuntimeError("the failure file exists")
        return super().forward(x)


class Mean(nn.Module):
    """The mean of the features of all tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one row for each text, [B, S, size] to [B, size]."""
        return x.mean(1)


def make() -> nn.Module:
    """Return the model, int64 [B, S] to float32 [B, 256]; its weights are the same everywhere."""
    torch.manual_seed(0)
    layers = (FailingLayer(_SIZE) for _ in range(_LAYERS))
    model = nn.Sequential(nn.Embedding(256, _SIZE), *layers, Mean())
    return model.eval().requires_grad_(False)


def encode(texts: list[str]) -> torch.Tensor:
    """Return the bytes of texts, int64 [B, 32]."""
    rows = [text.encode()[:LENGTH].ljust(LENGTH, b"\0") for text in texts]
    return torch.from_numpy(np.array([list(row) for row in rows], dtype=np.int64))


def write_input(path: Path, count: int) -> None:
    """Write random samples, the same ones each time.

    Args:
        path: a .npy file for the bytes that the model takes, or a .txt file for lines that `encode`
            takes.
        count: the number of samples.
    """
    draw = random.Random(1)
    texts = [
        "".join(draw.choices(string.ascii_letters, k=draw.randint(9, 60))) for _ in range(count)
    ]
    if path.suffix == ".npy":
        np.save(path, encode(texts).numpy())
    else:
        path.write_text("".join(f"{text}\n" for text in texts), encoding="ascii")
