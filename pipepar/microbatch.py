"""The micro-batch, the unit that flows through the pipeline, and the layout of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch

from pipepar.errors import PipeparError, StageError

Value: TypeAlias = torch.Tensor | bool | int | float | complex | str | None
"""A value that may be sent from stage to stage."""

SOURCE: Final = "source"
SINK: Final = "sink"


@dataclass(frozen=True, slots=True)
class Fault:
    """The error of a micro-batch, and where it occurred."""

    stage: int | str
    """The stage's number; `SOURCE` for reading the input, `SINK` for making rows of results."""
    error: str
    """The message of a PipeparError; else the type and message of the exception. For a StageError
    with a cause: the type and message of the cause."""

    @classmethod
    def of(cls, stage: int | str, error: Exception) -> Fault:
        """Return the fault for an exception that a stage, the source or the sink raised."""
        cause = error.__cause__ if isinstance(error, StageError) else error
        if isinstance(error, PipeparError) and (cause is None or cause is error):
            return cls(stage, str(error))
        return cls(stage, f"{type(cause).__name__}: {cause}")

    def __str__(self) -> str:
        """Return the place and the message, as shown to the user."""
        where = f"stage {self.stage}" if isinstance(self.stage, int) else f"the {self.stage}"
        return f"in {where}: {self.error}"


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The program that a stage runs for a micro-batch, and its arguments."""

    program: int = 0
    """Index of the program, 0 to 255. Inference has one program."""
    fields: torch.Tensor | None = None
    """int64 [n], on the host: arguments of the program; None for none."""


ONLY_STEP: Final = Step()
"""The step of every micro-batch if stages have one program."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch, from the reader of the input to the writer of the output."""

    index: int
    """Position in its stream, 0-based."""
    values: tuple[Value, ...]
    """The model's values, in an order on which sender and receiver agree; empty after an error."""
    samples: torch.Tensor | None = None
    """int64 [b], on the host: positions of the b rows in the user's input. None in the Python API,
    where a script passes its own batches."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Tensors of any shape, by name, on the host: needed by the writer in addition to the model's
    output. Stages pass them on unchanged."""
    error: Fault | None = None
    """The error that replaces the values, in a job that skips failing samples."""
    step: Step = ONLY_STEP
    """The program that stages run for it."""

    def with_values(self, values: tuple[Value, ...]) -> MicroBatch:
        """Return the same micro-batch with other values."""
        # Many times faster than dataclasses.replace; called several times per micro-batch.
        return MicroBatch(self.index, values, self.samples, self.columns, self.error, self.step)


def samples_of(microbatch: MicroBatch) -> torch.Tensor:
    """Return the positions of a micro-batch's rows in the user's input, int64 [b].

    Raises:
        PipeparError: the micro-batch has no sample positions.
    """
    if microbatch.samples is None:
        raise PipeparError(
            f"micro-batch {microbatch.index} has no sample positions, expected them for every "
            "micro-batch of a job over a file; report this as a bug"
        )
    return microbatch.samples


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The dtype, shape and strides with which a receiver reproduces a tensor's layout."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In elements. Channels preserve it: kernels chosen by layout may round differently."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Return the spec of `tensor`."""
        return cls(tensor.dtype, tuple(tensor.shape), tensor.stride())

    @property
    def numel(self) -> int:
        """Product of the sizes in `shape`."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Number of elements from the first to the last in memory, both included."""
        if self.numel == 0:
            return 0
        return 1 + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )

    @property
    def own(self) -> int:
        """Number of elements if an expanded dimension (stride 0) counts as one element."""
        pairs = zip(self.shape, self.stride, strict=True)
        return math.prod(size if step else min(size, 1) for size, step in pairs)

    @property
    def has_holes(self) -> bool:
        """Whether the tensor skips elements of its memory, as in ``x[:, ::2]``.

        False for a tensor that overlaps itself other than by expansion.
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
        """Bytes that a channel sends: skipped elements are not sent, expanded ones only once."""
        return (self.own if self.has_holes else self.extent) * self.dtype.itemsize


def compact(tensor: torch.Tensor, slack: float = 1.0) -> torch.Tensor:
    """Return a tensor that does not keep a much larger storage alive.

    Args:
        tensor: any tensor, such as a view of a larger one.
        slack: the maximum ratio of the storage's size to the tensor's size.

    Returns:
        The tensor, or a copy if its storage exceeds that ratio.
    """
    nbytes = tensor.nbytes if tensor.is_contiguous() else TensorSpec.of(tensor).nbytes
    if tensor.untyped_storage().nbytes() > slack * nbytes:
        return tensor.clone()
    return tensor
