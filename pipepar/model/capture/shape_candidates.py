"""Sizes and dynamic dimensions to try for tracing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

# Batch and length may vary from micro-batch to micro-batch; other dimensions belong to the model.
DYNAMIC_DIMS = 2


@dataclass(frozen=True, slots=True)
class ShapeCandidate:
    """Input shapes for one attempt to trace a model."""

    sizes: tuple[tuple[int, ...], ...]
    """For each tensor its size in every dimension."""
    dynamic_dims: int
    """Number of leading dimensions marked dynamic; torch.export fixes those that cannot vary."""


def shape_candidates(
    tensors: Sequence[torch.Tensor], module: nn.Module
) -> Iterator[ShapeCandidate]:
    """Yield the shapes to try, the most general first.

    torch.export takes a size of 1 for a constant, and equal sizes (batch and length, length and
    width) for one size. So dynamic dimensions are traced with unused sizes instead of the
    example's. torch's settings backed_size_oblivious and use_duck_shape are no substitute: with an
    example of one row, they fix the batch or the length of GPT-2, Llama, Mixtral and T5.

    Args:
        tensors: the example's tensors.
        module: the model; the sizes of its parameters and buffers are not used either.

    Yields:
        The candidates. The last one has the example's sizes and no dynamic dimension.
    """
    unused = unused_sizes(tensors, module)
    batch = next((t.shape[0] for t in tensors if t.dim()), 1)

    def new_batch(dim: int, size: int) -> int:
        return unused["batch"] if (dim, size) == (0, batch) else size

    def candidate(dynamic_dims: int, choose: Callable[[int, int], int]) -> ShapeCandidate:
        sizes = (
            tuple(choose(d, s) if d < dynamic_dims else s for d, s in enumerate(t.shape))
            for t in tensors
        )
        return ShapeCandidate(tuple(sizes), dynamic_dims)

    yield candidate(2, lambda dim, size: unused[dim, size])
    # For a size of dimension 1 that the model fixes, such as the channels of a picture.
    yield candidate(2, new_batch)
    # For a batch that is dimension 0 of one input and dimension 1 of another.
    yield candidate(2, lambda _, size: unused[size])
    # For a batch that the model fixes, or over which it loops.
    yield candidate(2, lambda _, size: size)
    # For a length that must be an int, such as the key of a cache.
    yield candidate(1, new_batch)
    # For a batch that must be an int.
    yield candidate(0, lambda _, size: size)


def resized(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor on meta with other sizes and the same order of dimensions in memory.

    Args:
        tensor: gives dtype and order.
        sizes: the new size of each dimension.

    Returns:
        A tensor without storage.
    """
    if tensor.is_contiguous():
        return torch.empty(sizes, dtype=tensor.dtype, device="meta")
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    dense = torch.empty([sizes[dim] for dim in order], dtype=tensor.dtype, device="meta")
    return dense.permute([order.index(dim) for dim in range(tensor.dim())])


def unused_sizes(tensors: Sequence[torch.Tensor], module: nn.Module) -> defaultdict[object, int]:
    """Return a mapping that gives each new key a size not yet in use.

    Args:
        tensors: the example's tensors.
        module: the model.

    Returns:
        The mapping. Its values are above 10, without small factors, distinct, and not a size of
        the example, a parameter or a buffer.
    """
    state = [*module.parameters(), *module.buffers(), *tensors]
    used = {size for tensor in state for size in tensor.shape}
    sizes = (n for n in count(11) if n not in used and all(n % d for d in (2, 3, 5, 7)))
    return defaultdict(lambda: next(sizes))
