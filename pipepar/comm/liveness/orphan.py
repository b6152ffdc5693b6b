"""Ends a rank when its launcher ends, and the launcher when the job is aborted."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipepar.comm.native import _pulse

# Files of shared memory of Open MPI. The launcher removes them, unless it is killed.
_SHARED: Final = re.compile(r"/dev/shm/(?:sm_segment|vader_segment)\.\S+$")
# Launchers that serve a single job. Other parents, such as slurmstepd or a shell, are not ended.
_SINGLE_JOB: Final = frozenset("prterun prted mpirun mpiexec orterun orted hydra_pmi_proxy".split())
# Prefix of the namespaces of jobs of a `prte` daemon, which serves many jobs.
_SHARED_DAEMON: Final = "prte-"


def end_with_launcher(launcher: int) -> None:
    """Register a signal that ends this rank when its launcher ends. Call it after MPI has started.

    The signal's handler also removes Open MPI's files of shared memory. If the launcher has already
    ended, the rank ends at once.

    Args:
        launcher: the process id of this rank's parent, read before MPI started.
    """
    files, may_end = _shared_memory(), _serves_single_job(launcher)
    _pulse.end_with_launcher(signal.SIGRTMAX - 1, launcher, files, may_end)


def end_launcher() -> None:
    """Start a process that ends the launcher, if that is still running after 3 seconds.

    A launcher would otherwise wait for ever for a host that is cut off. Call it before the job is
    aborted; the process outlives this rank. Does nothing if the launcher serves other jobs too, if
    `end_with_launcher` was not called, or in a second call.
    """
    _pulse.end_launcher()


def _serves_single_job(launcher: int) -> bool:
    if os.environ.get("PMIX_NAMESPACE", "").startswith(_SHARED_DAEMON):
        return False
    with suppress(OSError):  # /proc is hidden or missing
        name = Path(f"/proc/{launcher}/comm").read_text(errors="replace").strip()
        return name in _SINGLE_JOB
    return False


def _shared_memory() -> list[str]:
    """Return the files of Open MPI's shared memory that this process has mapped."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    return sorted({found[0] for line in maps.splitlines() if (found := _SHARED.search(line))})
