"""The contract of a format of outputs: its suffix, its content, and its writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from pipepar.data.writers.row_writer import RowWriter


def _accept(tensors: Mapping[str, torch.Tensor]) -> None:
    """Accept all tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """A format of outputs; each file of `writers.formats` defines one."""

    suffix: str
    """In lower case, with its dot."""
    writer: type[RowWriter]
    """The writer, with the constructor of `RowWriter`."""
    holds_answers: bool = False
    """Whether the format supports any JSON value per sample, such as the answer of a task, and not
    only rows of tensors."""
    check: Callable[[Mapping[str, torch.Tensor]], None] = _accept
    """Raises InputError if the format does not support the model's tensors. Called before the work
    starts with tensors by name, [B, ...], that have shapes and dtypes but no values."""
