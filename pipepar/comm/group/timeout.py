"""Timeouts for steps that wait for other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deadline(abort: Callable[[str], object], seconds: float, message: str) -> Iterator[None]:
    """Abort the job if the body of the `with` statement takes too long.

    Args:
        abort: ends the job with a report, such as `World.abort`.
        seconds: time limit of the body.
        message: which rank waited, for what, and the remedy.
    """
    timer = threading.Timer(seconds, abort, [f"error: {message}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
