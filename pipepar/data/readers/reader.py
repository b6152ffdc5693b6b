"""The contract of a reader, and the micro-batch that it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """One micro-batch of samples, as arguments of the model."""

    samples: torch.Tensor
    """int64 [B]: 0-based positions of the rows in the user's input."""

    args: tuple[torch.Tensor, ...]
    """Positional arguments, each of shape [B, ...]."""

    kwargs: dict[str, torch.Tensor]
    """Keyword arguments, each of shape [B, ...]."""

    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """The columns of the micro-batch by name: tensors of any shape that the results need in
    addition to the model's output. All feeds of a reader without a fault have the same names."""

    fault: PipeparError | None = None
    """The error of samples that cannot be read; there are then no arguments."""


class Reader(Protocol):
    """The samples of one input. Each rank that reads opens the input itself."""

    def __len__(self) -> int:
        """Number of samples."""

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        """Return an iterator over feeds that contain each sample once, except those in ``done``.

        Every call reads the whole input again, in an order that the reader chooses. Feeds that are
        left out do not change the composition of the others.

        Args:
            micro_batch: the largest number of rows in a feed, at least 1.
            done: samples to leave out, by whole feeds.

        Returns:
            The feeds. A feed whose samples cannot be read has a fault.

        Raises:
            InputError: ``micro_batch`` is below 1; or, from the iterator, the file changed since
                it was opened.
            PipeparError: from the iterator: only some samples of a feed are in ``done``.
        """

    def example(self) -> Feed:
        """Return a feed of up to 2 rows to capture the model with; made up for an empty input.

        It has a fault if the first samples cannot be read. Columns may be missing.
        """


def require_micro_batch(micro_batch: int) -> None:
    """Raise an error if a micro-batch has no rows.

    Args:
        micro_batch: number of rows.

    Raises:
        InputError: ``micro_batch`` is below 1.
    """
    if micro_batch < 1:
        raise InputError(f"micro-batch size {micro_batch}; expected at least 1 row. Raise it.")
