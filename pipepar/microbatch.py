"""The micro-batch, the unit that flows, and what one of its tensors looks like in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch

from pipepar.errors import PipeparError, StageError

Value: TypeAlias = torch.Tensor | bool | int | float | complex | str | None
"""What may cross from stage to stage."""

SOURCE: Final = "source"
SINK: Final = "sink"


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a micro-batch failed, and the error."""

    stage: int | str
    """The stage's number; `SOURCE` for reading, `SINK` for making rows of the results."""
    error: str
    """The message of what was raised."""

    @classmethod
    def of(cls, stage: int | str, error: Exception) -> Fault:
        """The fault for an exception that was raised there."""
        cause = error.__cause__ if isinstance(error, StageError) else error
        if isinstance(error, PipeparError) and (cause is None or cause is error):
            return cls(stage, str(error))
        return cls(stage, f"{type(cause).__name__}: {cause}")

    def __str__(self) -> str:
        """A few words for the user."""
        where = f"stage {self.stage}" if isinstance(self.stage, int) else f"the {self.stage}"
        return f"in {where}: {self.error}"


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Which program of a stage a micro-batch is for."""

    program: int = 0
    """Number of the program, 0 to 255; inference over a file has one."""
    fields: torch.Tensor | None = None
    """int64 [n], on the host: what the program needs to know of this step; None for nothing."""


ONLY_STEP: Final = Step()
"""The step of every micro-batch where stages have one program."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch, from the reader of the input to the writer of the output."""

    index: int
    """Position in its stream, 0-based."""
    values: tuple[Value, ...]
    """The model's values, in an order that both sides of a hand-over know; none after an error."""
    samples: torch.Tensor | None = None
    """int64 [b], on the host: positions of its b rows in the user's input; None where a script
    calls the model on its own batches."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the writer needs beside the model's output, by name, on the host; any shape. Stages
    pass it on."""
    error: Fault | None = None
    """Why there are no values, in a job that goes on without samples that fail."""
    step: Step = ONLY_STEP
    """Which program of a stage it is for."""

    def with_values(self, values: tuple[Value, ...]) -> MicroBatch:
        """The same micro-batch with other values."""
        # Many times as fast as dataclasses.replace, for what is done several times a micro-batch.
        return MicroBatch(self.index, values, self.samples, self.columns, self.error, self.step)


def samples_of(microbatch: MicroBatch) -> torch.Tensor:
    """The positions of a micro-batch's rows in the user's input, int64 [b].

    Raises:
        PipeparError: its rows are not those of an input.
    """
    if microbatch.samples is None:
        raise PipeparError(
            f"micro-batch {microbatch.index} does not say which samples it has, expected that of "
            "every one in a job over a file; report this"
        )
    return microbatch.samples


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a receiver must know to lay a tensor out exactly as it lay at the sender."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Elements; kept across the wire, since a kernel chosen by layout may round differently."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Describe `tensor`."""
        return cls(tensor.dtype, tuple(tensor.shape), tensor.stride())

    @property
    def numel(self) -> int:
        """Number of elements the shape spans."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def extent(self) -> int:
        """Number of elements between the first and the last in memory, both included."""
        if self.numel == 0:
            return 0
        return 1 + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )

    @property
    def own(self) -> int:
        """Number of elements that lie in memory, those of an expanded dimension counted once."""
        count = 1
        for size, step in zip(self.shape, self.stride, strict=True):
            count *= size if step else min(size, 1)
        return count

    @property
    def has_holes(self) -> bool:
        """Whether elements that are not its own lie between the tensor's, as in ``x[:, ::2]``.

        A tensor that overlaps itself other than by expansion counts as having none.
        """
        if self.extent <= self.own:
            return False
        reach = 1
        for step, size in sorted(zip(self.stride, self.shape, strict=True)):
            if step and size > 1:
                if step < reach:
                    return False
                reach += step * (size - 1)
        return True

    @property
    def nbytes(self) -> int:
        """Bytes that travel: the tensor's own and no others."""
        return (self.own if self.has_holes else self.extent) * self.dtype.itemsize


def compact(tensor: torch.Tensor, slack: float = 1.0) -> torch.Tensor:
    """A tensor that does not keep memory alive that is much larger than itself.

    Args:
        tensor: any tensor; a view of a larger one, or in a buffer made for a larger one.
        slack: how many times its own size the memory may have.

    Returns:
        The tensor, or a copy of it.
    """
    own = tensor.nbytes if tensor.is_contiguous() else TensorSpec.of(tensor).nbytes
    if tensor.untyped_storage().nbytes() > slack * own:
        return tensor.clone()
    return tensor
