"""The calls that a script makes of a Pipeline, and the stream that they are in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pipepar.microbatch import MicroBatch
from pipepar.trace import Tracer

T = TypeVar("T")


def as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional and keyword arguments: a tuple, a dict, or the one input."""
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, dict):
        return (), batch
    return (batch,), {}


def awaited(calls: Iterator[T], tracer: Tracer) -> Iterator[T]:
    """The calls, for each of which the caller may take its time."""
    while True:
        tracer.enter("caller", 0)
        call = next(calls, None)
        tracer.enter("other", 0)
        if call is None:
            return
        yield call


def handed(results: Iterator[T], tracer: Tracer) -> Iterator[T]:
    """The results, each of which the caller may keep for as long as it likes."""
    tracer.enter("other", 0)
    for result in results:
        tracer.enter("caller", 0)
        yield result
        tracer.enter("other", 0)


def device_of(leaves: Sequence[Any]) -> torch.device:
    """Where the first tensor of a call lies.

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
