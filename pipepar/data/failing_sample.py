"""Which sample of a micro-batch fails: the first that raises an exception by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from pipepar.errors import InputError, PipeparError, StageError

_SHOWN: Final = 8
# For finding out which sample it is.
_SECONDS: Final = 1.0
# Torch has no exception of its own for a host without memory.
_ALLOCATOR: Final = "DefaultCPUAllocator"


@contextmanager
def naming_samples(
    name: str, samples: torch.Tensor, again: Callable[[slice], object]
) -> Iterator[None]:
    """Raise what the body raises with the name of the function and the samples that failed.

    Args:
        name: of the function that the body calls, as the user knows it.
        samples: int64 [B], positions in the user's input.
        again: computes what the body computes, for some rows alone.

    Raises:
        StageError: the body raised something that pipepar does not explain itself; it is chained.
    """
    try:
        yield
    except PipeparError:
        raise
    except Exception as error:
        found = failing_samples(samples.tolist(), again if is_of_samples(error) else None)
        raise StageError(f"{name} failed on {found}: {type(error).__name__}: {error}") from error


def is_of_samples(error: BaseException) -> bool:
    """Whether other samples may well not raise it: no lack of memory, no broken GPU. *Local.*"""
    if isinstance(error, PipeparError):
        of_user = isinstance(error, InputError | StageError)
        return of_user if error.__cause__ is None else is_of_samples(error.__cause__)
    lacks_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or _ALLOCATOR in str(
        error
    )
    return not (lacks_memory or isinstance(error, torch.AcceleratorError))


def failing_samples(samples: Sequence[int], again: Callable[[slice], object] | None) -> str:
    """The first sample that fails alone, or else all of the micro-batch, in words.

    Args:
        samples: their positions in the user's input.
        again: computes for some rows of the micro-batch what failed for all of them; None if the
            error is not that of a row.
    """
    row = None if again is None else _first_failing(len(samples), _Timed(again))
    if row is not None:
        return f"sample {samples[row]}"
    return f"samples {', '.join(map(str, samples[:_SHOWN]))}" + ", ..." * (len(samples) > _SHOWN)


def select_rows(tree: Any, rows: slice, count: int) -> Any:
    """Some rows of all that has as many as a micro-batch, a list or a tensor. *Local.*

    Args:
        tree: lists and tensors of that many rows, and what else there is, nested in any way.
        rows: which.
        count: rows of the micro-batch, B.
    """
    if isinstance(tree, list) and len(tree) == count:
        return tree[rows]
    return pytree.tree_map_only(torch.Tensor, lambda leaf: _rows(leaf, rows, count), tree)


def _rows(tensor: torch.Tensor, rows: slice, count: int) -> torch.Tensor:
    return tensor[rows] if tensor.dim() and len(tensor) == count else tensor


class _Timed:
    """Whether some rows fail, as long as there is time to ask: others wait to hear of it."""

    def __init__(self, again: Callable[[slice], object]) -> None:
        self._again = again
        self._until = time.monotonic() + _SECONDS

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._until

    def fails(self, rows: slice) -> bool:
        try:
            self._again(rows)
        except Exception:  # the same as for all rows, which is raised
            return True
        return False


def _first_failing(count: int, timed: _Timed) -> int | None:
    """The first row that fails alone, by halves; None where it is not the row that decides."""
    begin, end = 0, count
    while end - begin > 1:
        middle = (begin + end) // 2
        if timed.is_over:
            return None
        if timed.fails(slice(begin, middle)):
            end = middle
        elif timed.fails(slice(middle, end)):
            begin = middle
        else:
            return None
    # Rows that all fail alone say nothing: they may need one another, or the fault is no row's.
    others = [slice(0, 1)] if begin else [slice(at, at + 1) for at in range(1, count)]
    others_pass = any(not timed.is_over and not timed.fails(other) for other in others)
    return begin if count == 1 or others_pass else None
