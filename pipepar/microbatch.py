"""The micro-batch, the unit that flows, and what one of its tensors looks like in memory.

Shapes in this file: B is the number of rows of a whole batch, b that of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch.utils import _pytree as pytree

from pipepar.errors import InputError, PipeparError, StageError

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
    """int64 [b], on the host: positions of its rows in the user's input; None where a script calls
    the model on its own batches."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the writer needs beside the model's output, by name, on the host; any shape. Stages
    pass it on."""
    error: Fault | None = None
    """Why there are no values, in a job that goes on without samples that fail."""
    step: Step = ONLY_STEP
    """Which program of a stage it is for."""


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
        """Describe `tensor`. *Local.*"""
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
    """A tensor that does not keep memory alive that is much larger than itself. *Local.*

    Args:
        tensor: any tensor; a view of a larger one, or in a buffer made for a larger one.
        slack: how many times its own size the memory may have.

    Returns:
        The tensor, or a copy of it.
    """
    if tensor.untyped_storage().nbytes() > slack * TensorSpec.of(tensor).nbytes:
        return tensor.clone()
    return tensor


def rows(leaves: Sequence[Any]) -> int:
    """Number of rows B that a batch's tensors agree on. *Local.*

    Args:
        leaves: the flattened inputs of one call; tensors [B, ...], anything else is ignored.

    Raises:
        InputError: no tensor has a first dimension, or two of them differ.
    """
    sizes = [len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
    if not sizes:
        raise InputError(
            "no input is a tensor with a first dimension, so there is nothing to split into "
            "micro-batches; pass at least one tensor of shape [batch, ...]"
        )
    if len(set(sizes)) > 1:
        raise InputError(
            f"the inputs' first dimensions differ: {sizes}; every input tensor with dimensions "
            "must have the batch first; make the others 0-d tensors or Python scalars"
        )
    return sizes[0]


def split(tree: Any, size: int) -> Iterator[Any]:
    """Split a batch into micro-batches along its first dimension. *Local.*

    Args:
        tree: any nesting of tensors [B, ...] and constants.
        size: rows of a micro-batch, at least 1; the last one may have fewer.

    Yields:
        The same nesting over views of shape [b, ...]; 0-d tensors and constants repeat. A batch
        without rows gives one micro-batch without rows, so that its output has a shape.
    """
    leaves, structure = pytree.tree_flatten(tree)
    for begin in range(0, max(rows(leaves), 1), size):
        part = [
            leaf[begin : begin + size] if isinstance(leaf, torch.Tensor) and leaf.dim() else leaf
            for leaf in leaves
        ]
        yield pytree.tree_unflatten(part, structure)


def merge(trees: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Undo `split` on the model's outputs. *Local.*

    Args:
        trees: the outputs of consecutive micro-batches, all nested alike.
        sizes: the rows b of each micro-batch.

    Returns:
        The same nesting over tensors [B, ...]. A single micro-batch comes back as it is.

    Raises:
        InputError: an output has no row for every sample, so that joining it means nothing.
    """
    if len(trees) == 1:
        return trees[0]
    flat, structures = zip(*(pytree.tree_flatten(tree) for tree in trees), strict=True)
    if any(structure != structures[0] for structure in structures):
        raise InputError(
            "the model's outputs are nested differently from micro-batch to micro-batch and "
            "cannot be joined; use micro_batch as large as the batch"
        )
    return pytree.tree_unflatten(
        [_join(leaves, sizes) for leaves in zip(*flat, strict=True)], structures[0]
    )


def _join(leaves: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = leaves[0]
    if not isinstance(first, torch.Tensor):
        if all(leaf == first for leaf in leaves):
            return first
    elif all(leaf.dim() and len(leaf) == size for leaf, size in zip(leaves, sizes, strict=True)):
        return torch.cat(list(leaves))
    found = [list(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves[:3]]
    raise InputError(
        f"an output of the model has no row for every sample: micro-batches of {list(sizes[:3])} "
        f"rows gave {found}; outputs that sum over the batch cannot be joined: use micro_batch "
        "as large as the batch, or return values of shape [batch, ...]"
    )
