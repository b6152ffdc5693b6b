"""Samples in, arguments out: one function turns what a file holds into what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch

from pipepar.data.readers.reader import Feed, require_micro_batch
from pipepar.data.sample_names import naming_samples, sample_names
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError

Prepare: TypeAlias = Callable[[Any], Any]
"""Given a batch's content, returns a tensor, a tuple of tensors or a mapping of names to tensors,
each [B, ...]: the model's arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some consecutive samples, as the file gives them."""

    start: int
    """Position of the first."""
    count: int
    """Number of samples, B."""
    content: Any
    """A list with one value a sample, a tensor [B, ...], or tensors [B, ...] by name."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the results need beside the model's output; see `Feed.extras`."""
    fault: PipeparError | None = None
    """Why there is no content."""


class Samples(Protocol):
    """What an input holds, before anything makes a model's arguments of it."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        """Read all samples once and in order, so many at a time, but no batch that is done."""

    def example(self) -> Batch:
        """Return up to 2 samples, made up for an empty input."""


class Prepared:
    """Reads samples and hands each batch to a function, which returns the arguments."""

    def __init__(self, samples: Samples, prepare: Prepare, name: str) -> None:
        """Take note of both; nothing is read yet.

        Args:
            samples: what the input holds.
            prepare: makes the model's arguments of a batch's content.
            name: of that function, as the user knows it.
        """
        self._samples = samples
        self._prepare = prepare
        self._name = name

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        """Read all samples once, in order; see `Reader.feeds`."""
        require_micro_batch(micro_batch)
        return self._feeds(micro_batch, done or SampleSet(len(self)))

    def example(self) -> Feed:
        """Return a feed of up to 2 rows to capture the model with."""
        return self._feed(self._samples.example())

    def _feeds(self, micro_batch: int, done: SampleSet) -> Iterator[Feed]:
        for batch in self._samples.batches(micro_batch, done):
            if not done.holds(range(batch.start, batch.start + batch.count)):
                yield self._feed(batch)

    def _feed(self, batch: Batch) -> Feed:
        samples = torch.arange(batch.start, batch.start + batch.count)
        try:
            args, kwargs = self._prepared(batch, samples)
        except PipeparError as error:
            return Feed(samples, (), {}, batch.extras, error)
        return Feed(samples, args, kwargs, batch.extras)

    def _prepared(
        self, batch: Batch, samples: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if batch.fault is not None:
            raise batch.fault
        with naming_samples(self._name, lambda _: sample_names(samples.tolist())):
            made = self._prepare(batch.content)
        args, kwargs = self._arguments(made)
        for name, tensor in [*((f"value {at}", t) for at, t in enumerate(args)), *kwargs.items()]:
            self._check(name, tensor, batch.count)
        return args, kwargs

    def _arguments(self, made: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if isinstance(made, torch.Tensor):
            return (made,), {}
        if isinstance(made, tuple) and made:
            return made, {}
        if isinstance(made, Mapping) and made:
            return (), dict(made)
        size = " of nothing" if isinstance(made, tuple | Mapping) else ""
        raise InputError(
            f"{self._name} returned a {type(made).__name__}{size}; expected a tensor, a tuple of "
            "tensors or a dict of tensors, the model's arguments. Return one of them."
        )

    def _check(self, name: str, tensor: object, count: int) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{self._name} returned a {type(tensor).__name__} as {name}; expected a tensor. "
                "Convert it, for example with torch.as_tensor."
            )
        if not tensor.dim() or len(tensor) != count:
            raise InputError(
                f"{self._name} returned shape {tuple(tensor.shape)} as {name} for {count} samples; "
                "expected one row a sample along dimension 0. Stack the samples first."
            )
