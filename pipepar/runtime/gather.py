"""Micro-batches of results become whole batches again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pipepar.microbatch import MicroBatch, compact, merge


class Gather:
    """Puts the micro-batches of each batch together again.

    Args:
        unflatten: makes the model's own output of the values of a micro-batch.

    Attributes:
        taken: micro-batches that have come so far.
    """

    def __init__(self, unflatten: Callable[[Sequence[Any]], Any]) -> None:
        self._unflatten = unflatten
        self._expected: deque[list[int]] = deque()  # for each batch, its micro-batches' rows
        self._parts: list[Any] = []
        self.taken = 0

    def expect(self, total: int, size: int) -> None:
        """A batch of that many rows has been admitted."""
        sizes = [min(size, total - begin) for begin in range(0, max(total, 1), size)]
        self._expected.append(sizes)

    def add(self, microbatch: MicroBatch) -> None:
        """The next micro-batch of results has come."""
        self.taken += 1
        self._parts.append(self._unflatten(microbatch.values))

    def finished(self) -> Iterator[Any]:
        """The batch whose last micro-batch has just come, if it has."""
        if self._expected and len(self._parts) == len(self._expected[0]):
            parts, self._parts = self._parts, []
            result = merge(parts, self._expected.popleft())
            # It may lie in a receive buffer that was made for a larger micro-batch.
            yield pytree.tree_map_only(torch.Tensor, partial(compact, slack=2.0), result)
