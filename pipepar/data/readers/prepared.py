"""A reader that converts samples to the model's arguments with one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch

from pipepar.data.readers.reader import Feed, require_micro_batch
from pipepar.data.sample_names import sample_names, stage_errors
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError

Prepare: TypeAlias = Callable[[Any], Any]
"""Takes the content of a batch and returns the model's arguments: a tensor, a tuple of tensors or a
mapping of names to tensors, each [B, ...]."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive samples, as read from the file."""

    start: int
    """Position of the first sample."""
    count: int
    """Number of samples, B."""
    content: Any
    """A list with one value per sample, a tensor [B, ...], or tensors [B, ...] by name."""
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """The columns of the samples; see `Feed.columns`."""
    fault: PipeparError | None = None
    """The error of samples that cannot be read; the content is then not used."""


class Samples(Protocol):
    """The samples of an input, before they are prepared as arguments of the model."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        """Yield batches of at most `size` consecutive samples in order; omit those in `done`."""

    def example(self) -> Batch:
        """Return up to 2 samples, made up for an empty input."""


class PreparedReader:
    """A reader that prepares each batch of samples with a function."""

    def __init__(self, samples: Samples, prepare: Prepare, name: str) -> None:
        """Store the arguments; nothing is read yet.

        Args:
            samples: the samples of the input.
            prepare: returns the model's arguments for the content of a batch.
            name: the user's name of that function, for messages.
        """
        self._samples = samples
        self._prepare = prepare
        self._name = name

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        """Return an iterator over feeds in the input's order; see `Reader.feeds`."""
        require_micro_batch(micro_batch)
        return self._feeds(micro_batch, done or SampleSet(len(self)))

    def example(self) -> Feed:
        """Return a feed of up to 2 rows to capture the model with."""
        return self._feed(self._samples.example())

    def _feeds(self, micro_batch: int, done: SampleSet) -> Iterator[Feed]:
        for batch in self._samples.batches(micro_batch, done):
            if not done.contains_microbatch(range(batch.start, batch.start + batch.count)):
                yield self._feed(batch)

    def _feed(self, batch: Batch) -> Feed:
        samples = torch.arange(batch.start, batch.start + batch.count)
        try:
            args, kwargs = self._prepared(batch, samples)
        except PipeparError as error:
            return Feed(samples, (), {}, batch.columns, error)
        return Feed(samples, args, kwargs, batch.columns)

    def _prepared(
        self, batch: Batch, samples: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if batch.fault is not None:
            raise batch.fault
        with stage_errors(self._name, lambda _: sample_names(samples.tolist())):
            result = self._prepare(batch.content)
        args, kwargs = self._arguments(result)
        for name, tensor in [*((f"value {at}", t) for at, t in enumerate(args)), *kwargs.items()]:
            self._check(name, tensor, batch.count)
        return args, kwargs

    def _arguments(self, result: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        if isinstance(result, torch.Tensor):
            return (result,), {}
        if isinstance(result, tuple) and result:
            return result, {}
        if isinstance(result, Mapping) and result:
            return (), dict(result)
        empty = "n empty" if isinstance(result, tuple | Mapping) else ""
        raise InputError(
            f"{self._name} returned a{empty} {type(result).__name__}; expected the model's "
            "arguments: a tensor, a tuple of tensors or a dict of tensors. Return one of them."
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
                "expected one row per sample along dimension 0. Stack the samples first."
            )
