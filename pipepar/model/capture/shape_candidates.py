"""Which sizes the example's tensors are given for tracing, and which of them stay free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

# A microbatch may have any batch size and length; other dimensions are the model's own.
FREE_DIMS = 2


@dataclass(frozen=True, slots=True)
class ShapeCandidate:
    """One way to choose sizes; export is tried with one after another."""

    sizes: tuple[tuple[int, ...], ...]
    """For each tensor its size in every dimension."""
    free: tuple[frozenset[int], ...]
    """For each tensor the dimensions that may vary; export fixes those that cannot."""


def shape_candidates(
    tensors: Sequence[torch.Tensor], module: nn.Module
) -> Iterator[ShapeCandidate]:
    """Choices of sizes, the most general first.

    A size of 1 would be taken for a fixed one, and sizes that happen to be equal (batch and
    length, length and width) for sizes that must be. So free dimensions get sizes that occur
    nowhere else: equal ones where the example's are equal in the same dimension, as the batch is
    in all inputs. Where the model refuses them, fewer sizes are exchanged.

    Args:
        tensors: the example's tensors.
        module: the model; the sizes of its state are avoided.

    Yields:
        The choices; the last one fixes every size to the example's.
    """
    fresh = Fresh(tensors, module)
    batch = next((t.shape[0] for t in tensors if t.dim()), 1)
    both, one, none = range(FREE_DIMS), range(1), range(0)
    yield _candidate(tensors, both, lambda dim, size: fresh.size((dim, size)))
    yield _candidate(
        tensors, both, lambda dim, size: fresh.size("batch") if (dim, size) == (0, batch) else size
    )
    yield _candidate(tensors, both, lambda dim, size: fresh.size(size))
    yield _candidate(tensors, both, lambda dim, size: size)
    yield _candidate(tensors, one, lambda dim, size: fresh.size("batch") if size == batch else size)
    yield _candidate(tensors, one, lambda dim, size: size)
    yield _candidate(tensors, none, lambda dim, size: size)


def _candidate(
    tensors: Sequence[torch.Tensor], dims: range, choose: Callable[[int, int], int]
) -> ShapeCandidate:
    return ShapeCandidate(
        sizes=tuple(
            tuple(choose(d, s) if d in dims else s for d, s in enumerate(t.shape)) for t in tensors
        ),
        free=tuple(frozenset(d for d in dims if d < t.dim()) for t in tensors),
    )


def resized(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """A tensor on meta of other sizes whose dimensions lie in the same order in memory.

    Args:
        tensor: the tensor to imitate.
        sizes: its new sizes.

    Returns:
        A tensor without storage.
    """
    if tensor.is_contiguous():
        return torch.empty(sizes, dtype=tensor.dtype, device="meta")
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = torch.empty([sizes[dim] for dim in order], dtype=tensor.dtype, device="meta")
    return dense.permute([order.index(dim) for dim in range(tensor.dim())])


class Fresh:
    """Small primes that no tensor of the example or of the model has as a size.

    Args:
        tensors: the example's tensors.
        module: the model.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], module: nn.Module) -> None:
        state = [*module.parameters(), *module.buffers(), *tensors]
        self._taken = {size for tensor in state for size in tensor.shape}
        self._given: dict[object, int] = {}
        self._next = 11

    def size(self, key: object) -> int:
        """The size for a key; the same one each time."""
        if key not in self._given:
            while self._next in self._taken or any(self._next % d == 0 for d in (2, 3, 5, 7)):
                self._next += 1
            self._given[key] = self._next
            self._next += 1
        return self._given[key]
