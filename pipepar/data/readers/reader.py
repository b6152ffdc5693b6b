"""One micro-batch as the model takes it, and what reads a file into such micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """One micro-batch of samples, as arguments for the model."""

    samples: torch.Tensor
    """int64 [B]: positions of the rows in the user's input, 0-based."""

    args: tuple[torch.Tensor, ...]
    """Positional arguments, each of shape [B, ...]."""

    kwargs: dict[str, torch.Tensor]
    """Keyword arguments, each of shape [B, ...]."""

    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the results need beside the model's output, by name; any shape, the same names in every
    feed. It travels along to the last stage, and the model never sees it."""

    fault: PipeparError | None = None
    """Why the samples cannot be had; there is then nothing else but what is known of them."""


class Reader(Protocol):
    """The samples of one input file. Each rank that reads opens the file itself."""

    def __len__(self) -> int:
        """Number of samples."""

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        """Read all samples once, each in exactly one feed.

        Args:
            micro_batch: the largest number of rows in a feed, at least 1.
            done: samples to leave out, by whole feeds: the others are as they would be without.

        Returns:
            An iterator over the feeds; a second call starts again at the first sample. A feed
            that cannot be made has a fault, and the others are as they would be.

        Raises:
            InputError: ``micro_batch`` is below 1, or the file changed since it was opened.
            PipeparError: a part of a feed is done, and the rest is not.
        """

    def example(self) -> Feed:
        """Return a feed of up to 2 rows to capture the model with; made up for an empty input.

        It has a fault where the first samples cannot be had.
        """


def require_micro_batch(micro_batch: int) -> None:
    """Refuse a micro-batch of no rows.

    Args:
        micro_batch: number of rows.

    Raises:
        InputError: ``micro_batch`` is below 1.
    """
    if micro_batch < 1:
        raise InputError(f"micro-batch size {micro_batch}; expected at least 1 row. Raise it.")
