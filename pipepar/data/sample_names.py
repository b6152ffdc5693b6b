"""A user function that fails on samples: the error names the function and the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from pipepar.errors import PipeparError, StageError

_SHOWN: Final = 8


def sample_names(samples: Sequence[int]) -> str:
    """Return words for samples, given their positions in the user's input."""
    if len(samples) == 1:
        return f"sample {samples[0]}"
    return f"samples {', '.join(map(str, samples[:_SHOWN]))}" + ", ..." * (len(samples) > _SHOWN)


@contextmanager
def naming_samples(function: str, describe: Callable[[Exception], str]) -> Iterator[None]:
    """Turn an exception of the body into a StageError that names the function and the samples.

    Args:
        function: name of the function that the body calls, as the user knows it.
        describe: returns words for the samples that failed with an exception.

    Raises:
        StageError: the body raised an exception that is not pipepar's own; it is chained.
    """
    try:
        yield
    except PipeparError:
        raise
    except Exception as error:
        raise StageError(
            f"{function} failed on {describe(error)}: {type(error).__name__}: {error}"
        ) from error
