"""The signals that stop a job."""

from __future__ import annotations

import signal
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM is the usual one; Slurm sends SIGUSR1 before a time limit."""


def hold() -> None:
    """Block the signals until `release`. Call it before any other thread is started."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Unblock the signals; pending ones are delivered at once. Call it in the main thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore() -> None:
    """Ignore the signals from now on, also during Python's exit. Call it in the main thread."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
