"""The signals that tell a job to stop."""

from __future__ import annotations

import signal
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)
"""The first is everybody's, the second is how Slurm gives warning."""


def hold() -> None:
    """Have them wait until something is `listening`. Before there is any other thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Let them come, those that waited first. Main thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore() -> None:
    """Let them do nothing from now on, not even while Python ends. Main thread."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
