"""What a format of outputs is: its suffix, what it holds, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from pipepar.data.writers.row_writer import RowWriter


def _accept(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """What all formats state."""

    suffix: str
    """In lower case, with its dot."""
    writer: type[RowWriter]
    """Writes a file; made as `RowWriter` is."""
    holds_answers: bool = False
    """Whether it holds any JSON value for a sample, such as a task's answer, and not only rows of
    tensors."""
    check: Callable[[Mapping[str, torch.Tensor]], None] = _accept
    """Raises InputError if the format cannot hold a model's tensors; called before the work starts
    with tensors by name, [B, ...], that have shapes and dtypes but no values."""
