"""A rank ends when its launcher does, even where that was killed, and leaves no memory behind."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Final

from pipepar.comm.native import _pulse

# What Open MPI shares between the ranks of a host. The launcher removes it after any other end.
_SHARED: Final = re.compile(r"/dev/shm/(?:sm_segment|vader_segment)\.\S+$")


def end_with_launcher(launcher: int) -> None:
    """Have the kernel end this rank when its launcher ends. *Local*; once MPI has started.

    Args:
        launcher: this process's parent, as it was before MPI started.
    """
    _pulse.end_with_launcher(signal.SIGRTMAX - 1, launcher, _shared_memory())


def _shared_memory() -> list[str]:
    """Files that this very process shares with the other ranks of its job."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    return sorted({found[0] for line in maps.splitlines() if (found := _SHARED.search(line))})
