"""A benchmark starts itself again, as ranks: `main` runs twice, before and under mpirun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from tests.helpers.cluster.mpirun import finish, mpirun, start

# Hosts without a name server are not worth a warning of torch's for each connection.
_QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
_MARK = "figures "


def rank_command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command of one rank; `-m mpi4py` lets a rank that fails end the others."""
    return [sys.executable, "-m", "mpi4py", "-m", module, *arguments]


def launch(module: str, arguments: Sequence[str], seconds: float, ranks: int = 2) -> int:
    """Run a benchmark's ranks on this machine and print what they print.

    Args:
        module: the benchmark, as python -m names it.
        arguments: its command line.
        seconds: after that it is ended, and counts as failed.
        ranks: how many.

    Returns:
        An exit status: 0 if everything was measured.
    """
    return watch([*mpirun(ranks), *rank_command(module, arguments)], seconds)


def figures_of(
    module: str, arguments: Sequence[str], seconds: float, ranks: int = 2
) -> dict[str, list[float]]:
    """Run a benchmark's ranks on this machine for what rank 0 gives `print_figures`.

    Args:
        module: the benchmark, as python -m names it.
        arguments: its command line.
        seconds: after that it is ended, and counts as failed.
        ranks: how many.

    Raises:
        RuntimeError: the job failed.
    """
    ended = finish(start([*mpirun(ranks), *rank_command(module, arguments)]), seconds)
    lines = [line for line in ended.output.splitlines() if line.startswith(_MARK)]
    if ended.status != 0 or not lines:
        job = " ".join([module, *arguments])
        raise RuntimeError(f"{job} ended with status {ended.status}:\n{ended.output}")
    figures: dict[str, list[float]] = json.loads(lines[0].removeprefix(_MARK))
    return figures


def print_figures(figures: Mapping[str, Sequence[float]]) -> None:
    """Hand a rank's figures to the process that waits for them in `figures_of`."""
    print(_MARK + json.dumps(figures))


def watch(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> int:
    """Run a job to its end, print its output, and take it along if this process ends."""
    with signals_unwind():
        job = start(command, {**_QUIET, **(env or {})})
        try:
            ended = finish(job, seconds)
        except BaseException:
            _end(job)
            raise
    print(ended.output, end="")
    return 0 if ended.status == 0 else 1


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Turn the signals that end a process into exceptions, so that ``finally`` runs."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(job: subprocess.Popen[str]) -> None:
    """Let mpirun end its ranks, which a kill would orphan; kill it only if it does not."""
    job.terminate()
    try:
        job.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
