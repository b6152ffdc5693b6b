"""Interfaces for the progress and the notes that a run shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Takes the total amount of work. The context it returns yields a function that is called with
the amount just done."""


@contextmanager
def silent(total: int) -> Iterator[Callable[[int], None]]:
    """Show nothing; a `Progress`."""
    yield lambda done: None


@dataclass(frozen=True, slots=True)
class Display:
    """Outputs for the progress and the notes of one rank."""

    samples: Progress
    """Shows the number of samples done."""
    weights: Progress
    """Shows the bytes of weights loaded."""
    note: Callable[[str], None]
    """Shows a sentence to the user."""


NO_DISPLAY = Display(silent, silent, lambda sentence: None)
"""A display that shows nothing."""
