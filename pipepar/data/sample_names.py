"""Errors that name a function and the samples on which it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from pipepar.errors import PipeparError, StageError

_SHOWN: Final = 8


def sample_names(samples: Sequence[int]) -> str:
    """Return "sample 3", or "samples 3, 5" with at most 8 positions; ", ..." replaces the rest."""
    if len(samples) == 1:
        return f"sample {samples[0]}"
    return f"samples {', '.join(map(str, samples[:_SHOWN]))}" + ", ..." * (len(samples) > _SHOWN)


@contextmanager
def stage_errors(function: str, describe: Callable[[Exception], str]) -> Iterator[None]:
    """Convert exceptions of the body to a StageError that names the function and the samples.

    Args:
        function: the name of the function that the body calls, for the message.
        describe: returns a phrase for the samples that failed with the exception.

    Raises:
        StageError: the body raised an `Exception` other than a PipeparError; it is chained as the
            cause. A PipeparError is raised unchanged.
    """
    try:
        yield
    except PipeparError:
        raise
    except Exception as error:
        raise StageError(
            f"{function} failed on {describe(error)}: {type(error).__name__}: {error}"
        ) from error
