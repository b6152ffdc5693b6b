"""Writes and reads outputs in every format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from pipepar.data.writers.open_output import open_output

SUFFIXES = ["npy", "safetensors", "jsonl"]


def write(path: Path, values: dict[str, torch.Tensor], groups: Sequence[Sequence[int]]) -> None:
    """Write the rows of the values in micro-batches, each the samples of one group."""
    with open_output(path, sum(map(len, groups))) as writer:
        for group in groups:
            samples = torch.tensor(group, dtype=torch.int64)
            writer.write(samples, {name: value[samples] for name, value in values.items()})


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npy":
        return {"y": torch.from_numpy(np.load(path))}
    if path.suffix == ".safetensors":
        return load_file(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def only(folder: Path, *names: str) -> bool:
    return sorted(os.listdir(folder)) == sorted(names)
