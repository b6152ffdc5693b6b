"""Micro-batches of results become whole batches again."""

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
    """Puts the micro-batches of each batch together again.

    Args:
        unflatten: makes the model's own output of values.

    Attributes:
        taken: micro-batches that have come so far.
    """

    def __init__(self, unflatten: Callable[[Sequence[Any]], Any]) -> None:
        self._unflatten = unflatten
        self._expected: deque[_Batch] = deque()
        self._parts: list[tuple[Value, ...]] = []
        self.taken = 0

    def expect(self, total: int, size: int, device: torch.device) -> None:
        """A batch of that many rows has been admitted; its result goes to that device."""
        self._expected.append(_Batch(total, size, device))

    def add(self, microbatch: MicroBatch) -> None:
        """The next micro-batch of results has come."""
        self.taken += 1
        self._parts.append(microbatch.values)

    def finished(self) -> Iterator[Any]:
        """The batch whose last micro-batch has just come, if it has."""
        if self._expected and len(self._parts) == self._expected[0].parts:
            parts, self._parts = self._parts, []
            batch = self._expected.popleft()
            yield self._unflatten(list(map(batch.whole, zip(*parts, strict=True))))


@dataclass(frozen=True, slots=True)
class _Batch:
    """One whose results are awaited."""

    total: int
    """Its rows."""
    size: int
    """Rows of its micro-batches; the last one may have fewer."""
    device: torch.device
    """Where the result goes."""

    @property
    def parts(self) -> int:
        """Number of its micro-batches."""
        return max(-(-self.total // self.size), 1)

    def whole(self, parts: Sequence[Any]) -> Any:
        """A value of all of its micro-batches as one, on the device of the result."""
        sizes = [min(self.size, self.total - part * self.size) for part in range(self.parts)]
        value = merge(parts, sizes)
        if isinstance(value, torch.Tensor):
            return self._placed(value)
        return pytree.tree_map_only(torch.Tensor, self._placed, value)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        # It may be part of a receive buffer made for a larger micro-batch, or in pinned memory,
        # which a caller should not keep.
        own = tensor.clone() if tensor.is_pinned() else compact(tensor, slack=2.0)
        return own.to(self.device)


def merge(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Undo `split` on a value that the model returns.

    Args:
        trees: the value for consecutive micro-batches, of rows b: a tensor [b, ...] or a constant;
            what was not captured may be any nesting of them, all nested alike.
        sizes: the rows b of each micro-batch.

    Returns:
        The same nesting over tensors [B, ...]. A single micro-batch comes back as it is.

    Raises:
        InputError: an output has no row for every sample, so that joining it means nothing.
    """
    if len(trees) == 1:
        return trees[0]
    leaves, structure = flatten(trees[0])
    every = [leaves]
    for tree in trees[1:]:
        leaves, found = flatten(tree, structure)
        if found is not structure:
            raise InputError(
                "the model's outputs are nested differently from micro-batch to micro-batch and "
                "cannot be joined; use micro_batch as large as the batch"
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
        f"an output of the model has no row for every sample: micro-batches of {list(sizes[:3])} "
        f"rows gave {found}; outputs that sum over the batch cannot be joined: use micro_batch "
        "as large as the batch, or return values of shape [batch, ...]"
    )
