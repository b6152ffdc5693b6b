"""Finds the sample of a failed micro-batch that fails alone, by trying one sample at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from pipepar.data.readers.reader import Reader
from pipepar.data.sample_names import sample_names
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError, StageError

# The time limit of the trials, since they delay the end of the job on all ranks.
_SECONDS: Final = 1.0
# In the message of torch's RuntimeError if host memory cannot be allocated.
_ALLOCATOR: Final = "DefaultCPUAllocator"


def depends_on_samples(error: BaseException) -> bool:
    """Return whether other samples may succeed.

    False if memory is exhausted, after a GPU fault, and for errors of pipepar other than InputError
    and StageError. If an error of pipepar has a cause, the cause decides.
    """
    if isinstance(error, PipeparError):
        if error.__cause__ is not None:
            return depends_on_samples(error.__cause__)
        return isinstance(error, InputError | StageError)
    resources = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
    return not (isinstance(error, resources) or _ALLOCATOR in str(error))


def describe_failing(
    samples: Sequence[int], error: Exception, alone: Callable[[int], object]
) -> str:
    """Return a phrase for the sample that fails alone, or for all samples of the micro-batch.

    Args:
        samples: positions of the rows in the user's input.
        error: the error of the micro-batch.
        alone: repeats the failed computation for one row, given its index in the micro-batch.
    """
    row = find_failing_row(len(samples), alone) if depends_on_samples(error) else None
    return sample_names(samples if row is None else [samples[row]])


def find_failing_row(count: int, alone: Callable[[int], object]) -> int | None:
    """Return the first row that fails alone, if another row succeeds alone.

    If every row fails alone, the rows may depend on each other, or no row is the cause.

    Args:
        count: number of rows of the micro-batch, at least 1.
        alone: computes one row, given its index; raises if the row fails.

    Returns:
        The index of the row in the micro-batch; None if there is no such row, or if the time limit
        is reached.
    """
    deadline = time.monotonic() + _SECONDS
    failed: int | None = None
    one_passed = False
    for row in range(count):
        if time.monotonic() > deadline:
            return None
        try:
            alone(row)
        except Exception:  # the caller raises the exception of the micro-batch
            failed = row if failed is None else failed
        else:
            one_passed = True
        if failed is not None and one_passed:
            return failed
    return None


def fault_of_one_sample(
    reader: Reader, samples: Sequence[int], fault: PipeparError
) -> PipeparError:
    """Return the error of the first sample that fails alone, if another succeeds; else `fault`.

    Samples are read one at a time, in ascending order, if `fault` is a StageError that depends on
    samples.

    Args:
        reader: the input.
        samples: the samples of a micro-batch that could not be read.
        fault: the error of the micro-batch.
    """
    if not (isinstance(fault, StageError) and depends_on_samples(fault)):
        return fault
    order = sorted(samples)
    begins = [0, *(sample + 1 for sample in order)]
    others = SampleSet(len(reader), zip(begins, [*order, len(reader)], strict=True))
    feeds = reader.feeds(1, others)
    faults = list[PipeparError | None]()

    def alone(_row: int) -> None:
        faults.append(next(feeds).fault)
        if faults[-1] is not None:
            raise faults[-1]

    row = find_failing_row(len(samples), alone)
    return (None if row is None else faults[row]) or fault


def select_row(tree: Any, row: int, count: int) -> Any:
    """Return a structure with only one row of each tensor that has one row per sample.

    Args:
        tree: tensors [B, ...] and other values, nested in any way.
        row: index of the row.
        count: number of rows of the micro-batch, B.
    """
    return pytree.tree_map_only(
        torch.Tensor,
        lambda leaf: leaf[row : row + 1] if leaf.dim() and len(leaf) == count else leaf,
        tree,
    )
