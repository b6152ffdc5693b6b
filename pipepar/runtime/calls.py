"""The calls that a script makes of a Pipeline, and the stream that they are in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipepar.microbatch import MicroBatch


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


@dataclass(slots=True)
class OpenStream:
    """A stream under way on rank 0."""

    results: Iterator[MicroBatch]
    """What comes back."""
    ended: bool = False
    """Whether its end has been sent."""
    left: bool = False
    """Whether its caller takes no more of it: at its end, by a break, or by an exception."""
