"""Micro-batches of results become whole batches again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pipepar.microbatch import MicroBatch, compact, merge


class BatchMerge:
    """Puts the micro-batches of each batch together again.

    Args:
        unflatten: makes the model's own output of the values of a micro-batch.

    Attributes:
        taken: micro-batches that have come so far.
    """

    def __init__(self, unflatten: Callable[[Sequence[Any]], Any]) -> None:
        self._unflatten = unflatten
        self._expected: deque[_Batch] = deque()
        self._parts: list[Any] = []
        self.taken = 0

    def expect(self, total: int, size: int, device: torch.device) -> None:
        """A batch of that many rows has been admitted; its result is to lie on that device."""
        sizes = [min(size, total - begin) for begin in range(0, max(total, 1), size)]
        self._expected.append(_Batch(sizes, device))

    def add(self, microbatch: MicroBatch) -> None:
        """The next micro-batch of results has come."""
        self.taken += 1
        self._parts.append(self._unflatten(microbatch.values))

    def finished(self) -> Iterator[Any]:
        """The batch whose last micro-batch has just come, if it has."""
        if self._expected and len(self._parts) == len(self._expected[0].sizes):
            parts, self._parts = self._parts, []
            batch = self._expected.popleft()
            yield pytree.tree_map_only(torch.Tensor, batch.placed, merge(parts, batch.sizes))


@dataclass(frozen=True, slots=True)
class _Batch:
    """One whose results are awaited."""

    sizes: list[int]
    """Rows of its micro-batches."""
    device: torch.device
    """Where the result is to lie."""

    def placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the result, where it is to lie."""
        # It may lie in a receive buffer that was made for a larger micro-batch, or in memory that
        # the kernel cannot swap out, which is not for keeping.
        own = tensor.clone() if tensor.is_pinned() else compact(tensor, slack=2.0)
        return own.to(self.device)
