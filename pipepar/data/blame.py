"""Who is to blame: an exception on a micro-batch names the sample, where one alone raises it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pipepar.errors import PipeparError, StageError

_SHOWN = 8


@contextmanager
def blame(what: str, samples: torch.Tensor, again: Callable[[slice], object]) -> Iterator[None]:
    """Let what the body raises name the function and the samples it was given. *Local.*

    Args:
        what: the function, as the user knows it.
        samples: int64 [B], positions in the user's input.
        again: does what the body does for some rows alone.

    Raises:
        StageError: the body raised something that pipepar does not explain itself; it is chained.
    """
    try:
        yield
    except PipeparError:
        raise
    except Exception as error:
        told = blamed(samples.tolist(), again)
        raise StageError(f"{what} failed on {told}: {type(error).__name__}: {error}") from error


def blamed(samples: Sequence[int], again: Callable[[slice], object]) -> str:
    """The samples of a micro-batch that failed, or the first that fails alone, in words. *Local.*

    Args:
        samples: their positions in the user's input.
        again: does for some rows of the micro-batch what failed for all of them.
    """
    row = _culprit(len(samples), again)
    if row is not None:
        return f"sample {samples[row]}"
    return f"samples {', '.join(map(str, samples[:_SHOWN]))}" + ", ..." * (len(samples) > _SHOWN)


def part(tree: Any, rows: slice, count: int) -> Any:
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


def _culprit(count: int, again: Callable[[slice], object]) -> int | None:
    """The first row that fails alone, by halves; None where it is not the row that decides."""
    begin, end = 0, count
    while end - begin > 1:
        middle = (begin + end) // 2
        if _fails(slice(begin, middle), again):
            end = middle
        elif _fails(slice(middle, end), again):
            begin = middle
        else:
            return None
    # Rows that all fail alone say nothing: they may need one another, or the fault is no row's.
    others = [slice(0, 1)] if begin else [slice(at, at + 1) for at in range(1, count)]
    blameless = any(not _fails(other, again) for other in others)
    return begin if count == 1 or blameless else None


def _fails(rows: slice, again: Callable[[slice], object]) -> bool:
    try:
        again(rows)
    except Exception:  # the same as for all rows, which is told
        return True
    return False
