"""Splits a batch of B rows into micro-batches of b rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipepar.errors import InputError


def rows(leaves: Sequence[Any]) -> int:
    """Return the number of rows B of a batch.

    Args:
        leaves: the flattened inputs of one call; tensors [B, ...], other values are ignored.

    Raises:
        InputError: no tensor has a first dimension, or the first dimensions differ.
    """
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not sizes:
        raise InputError(
            "found no input tensor with a first dimension, expected one to split into "
            "micro-batches; pass at least one tensor of shape [batch, ...]"
        )
    if sizes.count(sizes[0]) < len(sizes):
        raise InputError(
            f"the inputs' first dimensions differ: {sizes}, expected the batch size in all of "
            "them; pass inputs without a batch dimension as 0-d tensors or Python scalars"
        )
    return sizes[0]


def device_of(leaves: Sequence[Any]) -> torch.device:
    """Return the device of the first tensor of a call.

    Args:
        leaves: the flattened inputs; at least one is a tensor.
    """
    return next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))


def split(leaves: Sequence[Any], total: int, size: int) -> Iterator[list[Any]]:
    """Split a batch into micro-batches along its first dimension.

    Args:
        leaves: the flattened inputs of one call; tensors [B, ...] and constants.
        total: the number of rows B, from `rows`.
        size: rows of a micro-batch, at least 1; the last one may have fewer.

    Yields:
        The leaves of each micro-batch: views of shape [b, ...]; 0-d tensors and constants are
        repeated. An empty batch gives one empty micro-batch, so that its output has a shape.
    """
    for begin in range(0, max(total, 1), size):
        yield [
            leaf[begin : begin + size] if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf
            for leaf in leaves
        ]
