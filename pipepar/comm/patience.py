"""A bound on waiting for other ranks: who waits too long says for what, and ends the job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipepar.comm.world import World


@contextmanager
def within(world: World, seconds: float, message: str) -> Iterator[None]:
    """End the job with a message if the body takes longer than that. *Local.*

    Args:
        world: whose ranks to end.
        seconds: how long the body may take.
        message: who waits for what, and what to do.
    """
    timer = threading.Timer(seconds, world.abort, [f"error: {message}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
