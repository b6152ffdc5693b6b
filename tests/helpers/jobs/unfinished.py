"""Outputs that are left unfinished, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipepar.data.writers.open_output import RowWriter, open_output
from pipepar.data.writers.partial import Partial
from pipepar.data.writers.unfinished import Resumable, find_unfinished

SUFFIXES = ["npy", "safetensors", "jsonl"]
HEADER = {"task": "raw", "micro_batch": 3}
ROWS = torch.arange(44, dtype=torch.float32).reshape(11, 4) / 7
# Not in ascending order, as those of texts; the last one is smaller.
BATCHES = [[4, 2, 0], [1, 3, 5], [6, 8, 7], [9, 10]]


class Crash(Exception):
    """Represents any exception that ends a run."""


def write(writer: RowWriter, batches: list[list[int]]) -> None:
    for batch in batches:
        writer.write(torch.tensor(batch), {"y": ROWS[batch]}, note=batch[0])


def crash(path: Path, batches: int) -> None:
    """Run a writer that fails after a number of micro-batches."""
    with pytest.raises(Crash):
        fail(opened(path), BATCHES[:batches])


def opened(
    path: Path, resume: bool = False, restored: list[tuple[list[int], Any]] | None = None
) -> RowWriter:
    """Return a writer that appends the samples and notes of restored records to a list."""
    partial = Partial(path)
    left = find_unfinished(partial) if resume else None
    notes = [] if restored is None else restored
    resumable = Resumable(partial, HEADER, left, lambda *each: notes.append(each))
    return open_output(path, 11, resumable)


def fail(output: RowWriter, batches: list[list[int]]) -> None:
    with output as writer:
        write(writer, batches)
        raise Crash


def finish(path: Path) -> int:
    """Resume and finish an output; return the number of micro-batches that were missing."""
    restored: list[tuple[list[int], Any]] = []
    with opened(path, True, restored) as writer:
        rest = [batch for batch in BATCHES if not writer.done.contains_microbatch(batch)]
        assert restored == [(batch, batch[0]) for batch in BATCHES if batch not in rest]
        write(writer, rest)
    return len(rest)
