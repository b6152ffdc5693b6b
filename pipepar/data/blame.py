"""Who is to blame: an exception in a function of the user's names the function and the samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipepar.errors import PipeparError, StageError

_SHOWN = 8


@contextmanager
def blame(what: str, samples: torch.Tensor) -> Iterator[None]:
    """Let what the body raises name the function and the samples it was given. *Local.*

    Args:
        what: the function, as the user knows it.
        samples: int64 [B], positions in the user's input.

    Raises:
        StageError: the body raised something that pipepar does not explain itself; it is chained.
    """
    try:
        yield
    except PipeparError:
        raise
    except Exception as error:
        numbers = samples.tolist()
        shown = ", ".join(map(str, numbers[:_SHOWN])) + ", ..." * (len(numbers) > _SHOWN)
        raise StageError(
            f"{what} failed on samples {shown}: {type(error).__name__}: {error}"
        ) from error
