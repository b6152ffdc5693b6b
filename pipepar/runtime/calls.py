"""What a script gives a Pipeline to compute: one call of the model, however it was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional and keyword arguments: a tuple, a dict, or the one input. *Local.*"""
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, dict):
        return (), batch
    return (batch,), {}


def device_of(leaves: Sequence[Any]) -> torch.device:
    """Where the first tensor of a call lies. *Local.*

    Args:
        leaves: the flattened inputs; at least one is a tensor.
    """
    return next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
