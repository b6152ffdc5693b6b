"""Merges the results of micro-batches into whole batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pipepar.errors import InputError
from pipepar.microbatch import MicroBatch, Value, compact
from pipepar.model.capture.containers import flatten


class BatchMerge:
    """Merges the micro-batches of consecutive batches.

    Args:
        unflatten: builds the model's output from a flat list of values.

    Attributes:
        received: number of micro-batches added so far.
    """

    def __init__(self, unflatten: Callable[[Sequence[Any]], Any]) -> None:
        self._unflatten = unflatten
        self._expected: deque[_Batch] = deque()
        self._parts: list[tuple[Value, ...]] = []
        self.received = 0

    def expect(self, total: int, size: int, device: torch.device) -> None:
        """Append a batch to those expected, before its first micro-batch is added.

        Args:
            total: rows of the batch.
            size: rows of its micro-batches; the last one may have fewer.
            device: the device for its result.
        """
        self._expected.append(_Batch(total, size, device))

    def add(self, microbatch: MicroBatch) -> None:
        """Add the results of the next micro-batch."""
        self.received += 1
        self._parts.append(microbatch.values)

    def finished(self) -> Iterator[Any]:
        """Yield the model's output for the first expected batch if it is complete, else nothing.

        Call it after every `add`.

        Raises:
            InputError: the results of the micro-batches cannot be merged; see `merge`.
        """
        if self._expected and len(self._parts) == self._expected[0].parts:
            parts, self._parts = self._parts, []
            batch = self._expected.popleft()
            yield self._unflatten(list(map(batch.merged, zip(*parts, strict=True))))


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch whose results are incomplete; see `BatchMerge.expect`."""

    total: int
    size: int
    device: torch.device

    @property
    def parts(self) -> int:
        """Number of its micro-batches; 1 for a batch without rows."""
        return max(-(-self.total // self.size), 1)

    def merged(self, parts: Sequence[Any]) -> Any:
        """Merge one value of all its micro-batches, on the device of the result."""
        sizes = [min(self.size, self.total - part * self.size) for part in range(self.parts)]
        value = merge(parts, sizes)
        if isinstance(value, torch.Tensor):
            return self._on_device(value)
        return pytree.tree_map_only(torch.Tensor, self._on_device, value)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        # The tensor may be a view of a receive buffer or of pinned memory. The caller's result
        # must not keep pinned memory alive, or a buffer of more than twice its size.
        own = tensor.clone() if tensor.is_pinned() else compact(tensor, slack=2.0)
        return own.to(self.device)


def merge(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Merge an output of the model over consecutive micro-batches; the inverse of `split`.

    Args:
        trees: the output for each micro-batch of b rows: a tensor [b, ...] or a constant. A model
            of layers that was not captured may return them in any nesting, the same for all.
        sizes: the rows b of each micro-batch.

    Returns:
        The same nesting with tensors [B, ...]; the output itself for a single micro-batch.

    Raises:
        InputError: an output does not have one row per sample, or a constant or the nesting
            differs.
    """
    if len(trees) == 1:
        return trees[0]
    leaves, structure = flatten(trees[0])
    every = [leaves]
    for tree in trees[1:]:
        leaves, found = flatten(tree, structure)
        if found is not structure:
            raise InputError(
                "the model's outputs are nested differently for different micro-batches, expected "
                "the same nesting to merge them; use micro_batch as large as the batch"
            )
        every.append(leaves)
    joined = [_join(leaves, sizes) for leaves in zip(*every, strict=True)]
    return pytree.tree_unflatten(joined, structure)


def _join(leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = leaves[0]
    if not isinstance(first, torch.Tensor):
        if all(leaf == first for leaf in leaves):
            return first
    elif all(leaf.dim() and len(leaf) == size for leaf, size in zip(leaves, sizes, strict=True)):
        return torch.cat(list(leaves))
    found = [list(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves[:3]]
    raise InputError(
        f"an output of the model does not have one row per sample: micro-batches of "
        f"{list(sizes[:3])} rows gave {found}; outputs that are reduced over the batch cannot be "
        f"merged: use micro_batch as large as the batch, or return values of shape [batch, ...]"
    )
