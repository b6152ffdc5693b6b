"""What a run tells a person while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given how much there is to do, a context whose value receives how much more is done."""


@contextmanager
def silent(total: int) -> Iterator[Callable[[int], None]]:
    """A `Progress` that shows nothing."""
    yield lambda done: None


@dataclass(frozen=True, slots=True)
class Display:
    """Where one rank's news go."""

    samples: Progress
    """Receives the samples done."""
    weights: Progress
    """Receives the bytes of weights that are there."""
    note: Callable[[str], None]
    """Receives what the user should know, a sentence."""


NO_DISPLAY = Display(silent, silent, lambda sentence: None)
"""Shows nothing, for ranks without a terminal."""
