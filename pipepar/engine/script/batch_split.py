"""Whole batches become micro-batches; B is the rows of a batch, b those of a micro-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipepar.errors import InputError


def rows(leaves: Sequence[Any]) -> int:
    """Number of rows B that a batch's tensors agree on.

    Args:
        leaves: the flattened inputs of one call; tensors [B, ...], anything else is ignored.

    Raises:
        InputError: no tensor has a first dimension, or two of them differ.
    """
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not sizes:
        raise InputError(
            "no input is a tensor with a first dimension, so there is nothing to split into "
            "micro-batches; pass at least one tensor of shape [batch, ...]"
        )
    if sizes.count(sizes[0]) < len(sizes):
        raise InputError(
            f"the inputs' first dimensions differ: {sizes}; every input tensor with dimensions "
            "must have the batch first; make the others 0-d tensors or Python scalars"
        )
    return sizes[0]


def split(leaves: Sequence[Any], total: int, size: int) -> Iterator[list[Any]]:
    """Split a batch into micro-batches along its first dimension.

    Args:
        leaves: the flattened inputs of one call; tensors [B, ...] and constants.
        total: the number of rows B, as `rows` gives it.
        size: rows of a micro-batch, at least 1; the last one may have fewer.

    Yields:
        The leaves of each micro-batch: views of shape [b, ...]; 0-d tensors and constants repeat. A
        batch without rows gives one micro-batch without rows, so that its output has a shape.
    """
    for begin in range(0, max(total, 1), size):
        yield [
            leaf[begin : begin + size] if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf
            for leaf in leaves
        ]
