"""Waiting for a condition, bounded in time."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float, look: float = 0.01) -> bool:
    """Wait for a condition, looking so often; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(look)
    return True
