"""Which sample of a failed micro-batch fails by itself: each is tried alone, one after another."""

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

# Time for the trials: the other ranks of the job end after them.
_SECONDS: Final = 1.0
# Part of the message when torch cannot allocate host memory; it has no exception of its own.
_ALLOCATOR: Final = "DefaultCPUAllocator"


def depends_on_samples(error: BaseException) -> bool:
    """Return whether other samples may pass: not after a lack of memory or a fault of a GPU."""
    if isinstance(error, PipeparError):
        of_user = isinstance(error, InputError | StageError)
        return of_user if error.__cause__ is None else depends_on_samples(error.__cause__)
    lacks_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or _ALLOCATOR in str(
        error
    )
    return not (lacks_memory or isinstance(error, torch.AcceleratorError))


def name_failing(samples: Sequence[int], error: Exception, alone: Callable[[int], object]) -> str:
    """Return words for the sample that fails alone, or for all samples of the micro-batch.

    Args:
        samples: positions of the rows in the user's input.
        error: what the micro-batch failed with.
        alone: computes for one row, by its number in the micro-batch, what failed for all of them.
    """
    row = first_failing(len(samples), alone) if depends_on_samples(error) else None
    return sample_names(samples if row is None else [samples[row]])


def first_failing(count: int, alone: Callable[[int], object]) -> int | None:
    """Return the first row that fails alone while another row does not.

    If every row fails alone, the rows may need one another, or the fault is not in any row.

    Args:
        count: rows of the micro-batch, at least 1.
        alone: computes one row; it raises if the row fails.

    Returns:
        The number of the row in the micro-batch; None if there is no such row, or if the time for
        the trials is over.
    """
    deadline = time.monotonic() + _SECONDS
    failed: int | None = None
    one_passed = False
    for row in range(count):
        if time.monotonic() > deadline:
            return None
        try:
            alone(row)
        except Exception:  # the micro-batch's own exception is the one that is raised
            failed = row if failed is None else failed
        else:
            one_passed = True
        if failed is not None and one_passed:
            return failed
    return None


def fault_alone(reader: Reader, samples: Sequence[int], fault: PipeparError) -> PipeparError:
    """Return the error of the first sample that fails when it is read alone, or else `fault`.

    Args:
        reader: the input.
        samples: those of a micro-batch that could not be read.
        fault: why not.
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

    row = first_failing(len(samples), alone)
    return (None if row is None else faults[row]) or fault


def select_row(tree: Any, row: int, count: int) -> Any:
    """Return one row of each tensor that has one for every sample of a micro-batch.

    Args:
        tree: tensors [B, ...] and other values, nested in any way.
        row: number of the row.
        count: rows of the micro-batch, B.
    """
    return pytree.tree_map_only(
        torch.Tensor,
        lambda leaf: leaf[row : row + 1] if leaf.dim() and len(leaf) == count else leaf,
        tree,
    )
