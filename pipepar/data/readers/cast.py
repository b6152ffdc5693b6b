"""Casts the model's arguments to the dtype to compute in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import torch

from pipepar.data.readers.reader import Feed, Reader
from pipepar.data.sample_set import SampleSet

Args: TypeAlias = tuple[torch.Tensor, ...]
Kwargs: TypeAlias = dict[str, torch.Tensor]


class CastReader:
    """A reader that casts the floating-point arguments of another reader."""

    def __init__(self, reader: Reader, dtype: torch.dtype) -> None:
        """Wrap a reader.

        Args:
            reader: the samples.
            dtype: a floating-point dtype.
        """
        self._reader = reader
        self._dtype = dtype

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._reader)

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        """Return an iterator over feeds; see `Reader.feeds`."""
        return map(self._cast, self._reader.feeds(micro_batch, done))

    def example(self) -> Feed:
        """Return a feed of up to 2 rows."""
        return self._cast(self._reader.example())

    def _cast(self, feed: Feed) -> Feed:
        args, kwargs = cast(feed.args, feed.kwargs, self._dtype)
        return dataclasses.replace(feed, args=args, kwargs=kwargs)


def cast(args: Args, kwargs: Kwargs, dtype: torch.dtype) -> tuple[Args, Kwargs]:
    """Return the arguments of a model with the floating-point tensors cast.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        dtype: a floating-point dtype.
    """

    def cast_one(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return tuple(map(cast_one, args)), {name: cast_one(value) for name, value in kwargs.items()}
