"""Samples in the dtype that the model was told to compute in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

import torch

from pipepar.data.readers.reader import Feed, Reader
from pipepar.data.sample_set import SampleSet

Args: TypeAlias = tuple[torch.Tensor, ...]
Kwargs: TypeAlias = dict[str, torch.Tensor]


class Cast:
    """A reader whose floating-point arguments are cast; token ids and masks stay."""

    def __init__(self, reader: Reader, dtype: torch.dtype) -> None:
        """Take note of both.

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
        """Read all samples once; see `Reader.feeds`."""
        return map(self._cast, self._reader.feeds(micro_batch, done))

    def example(self) -> Feed:
        """Return a feed of up to 2 rows."""
        return self._cast(self._reader.example())

    def _cast(self, feed: Feed) -> Feed:
        args, kwargs = cast(feed.args, feed.kwargs, self._dtype)
        return dataclasses.replace(feed, args=args, kwargs=kwargs)


def cast(args: Args, kwargs: Kwargs, dtype: torch.dtype) -> tuple[Args, Kwargs]:
    """The same arguments, but what is floating-point in one dtype.

    Args:
        args: positional ones.
        kwargs: keyword ones.
        dtype: a floating-point dtype.
    """
    one = partial(_one, dtype)
    return tuple(map(one, args)), {name: one(tensor) for name, tensor in kwargs.items()}


def _one(dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
