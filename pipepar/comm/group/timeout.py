"""A time limit for a step that waits for other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deadline(abort: Callable[[str], object], seconds: float, message: str) -> Iterator[None]:
    """End the job with a message if the body takes longer than the limit.

    Args:
        abort: ends the job, given a report; see `World.abort`.
        seconds: how long the body may take.
        message: which rank waits, for what, and what to do.
    """
    timer = threading.Timer(seconds, abort, [f"error: {message}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
