"""A time limit for steps that wait for other ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deadline(abort: Callable[[str], object], seconds: float, message: str) -> Iterator[None]:
    """Abort the job if the body of the `with` statement takes longer than `seconds`.

    `abort` is called in a timer thread; the body is not interrupted.

    Args:
        abort: prints its argument and ends the job; for example `World.abort`.
        seconds: time limit of the body.
        message: which rank waited, for what, and what to try; "error: " is put before it.
    """
    timer = threading.Timer(seconds, abort, [f"error: {message}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
