"""A rank and its launcher end together, whichever ends first, and leave no memory behind."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipepar.comm.native import _pulse

# What Open MPI shares between the ranks of a host. The launcher removes it after any other end.
_SHARED: Final = re.compile(r"/dev/shm/(?:sm_segment|vader_segment)\.\S+$")
# The parents of ranks that are there for one job. Others, as slurmstepd or a shell, are not ours.
_OF_ONE_JOB: Final = frozenset("prterun prted mpirun mpiexec orterun orted hydra_pmi_proxy".split())
# The jobs of a `prte` that lasts for many have it in their name.
_OF_MANY_JOBS: Final = "prte-"


def end_with_launcher(launcher: int) -> None:
    """Have the kernel end this rank when its launcher ends; call it once MPI has started.

    Args:
        launcher: this process's parent, as it was before MPI started.
    """
    files, both = _shared_memory(), _is_of_one_job(launcher)
    _pulse.end_with_launcher(signal.SIGRTMAX - 1, launcher, files, both)


def end_launcher() -> None:
    """See to it that the launcher ends soon, though it waits for a host that is cut off.

    Call it before the job is ended: this rank need not be there any more when it comes to that.
    """
    _pulse.end_launcher()


def _is_of_one_job(launcher: int) -> bool:
    if os.environ.get("PMIX_NAMESPACE", "").startswith(_OF_MANY_JOBS):
        return False
    with suppress(OSError):  # hidden, or no such system
        name = Path(f"/proc/{launcher}/comm").read_text(errors="replace").strip()
        return name in _OF_ONE_JOB
    return False


def _shared_memory() -> list[str]:
    """Files that this very process shares with the other ranks of its job."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    return sorted({found[0] for line in maps.splitlines() if (found := _SHARED.search(line))})
