"""Waiting for a condition, with a time limit."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float, period: float = 0.01) -> bool:
    """Wait until a condition is true; return False after `seconds`.

    Args:
        condition: the condition, checked once in each period.
        seconds: the time limit.
        period: seconds between two checks.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(period)
    return True
