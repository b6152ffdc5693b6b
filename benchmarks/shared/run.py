"""One run of a benchmark: starts its jobs and collects what rank 0 of each returns."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.shared.benchmark import Benchmark, BenchmarkError
from benchmarks.shared.report import Report
from pipepar.comm.group.launcher import is_launched_root, launched
from tests.helpers.cluster.hosts import Hosts
from tests.helpers.cluster.mpirun import finish, mpirun, start

# Without a name server torch would print a warning for each connection.
_QUIET: Final = {"TORCH_CPP_LOG_LEVEL": "ERROR"}


class Run:
    """The options, the report and the jobs of one run.

    Args:
        name: the name of the benchmark.
        benchmark: the benchmark.
        options: the parsed command line.
    """

    def __init__(self, name: str, benchmark: Benchmark, options: Namespace) -> None:
        self.options = options
        self.report = Report(f"{name}: {benchmark.question}")
        self._name, self._benchmark = name, benchmark

    def job(
        self,
        job: str,
        ranks: int = 2,
        *,
        where: Hosts | None = None,
        env: Mapping[str, str] | None = None,
        seconds: float = 900,
        **options: Any,
    ) -> Any:
        """Run a function of the benchmark on ranks and return the value of rank 0.

        Under a launcher the ranks are there already: the function is called in this process, and
        the other ranks end after it.

        Args:
            job: the name of the function in `Benchmark.jobs`.
            ranks: the number of ranks.
            where: two hosts, of which the first gets rank 0 and the second the other ranks; None
                for this machine.
            env: additional environment variables.
            seconds: the time limit.
            options: options for this job alone, in addition to those of the command line.

        Raises:
            BenchmarkError: the job failed or reached the time limit; with its output.
        """
        if launched():
            value = run_on_rank(self._benchmark, job, {**vars(self.options), **options})
            if not is_launched_root():
                raise SystemExit
            return value
        with TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            # With `-m mpi4py` a rank that fails ends the others.
            command = [sys.executable, *"-m mpi4py -m benchmarks.shared.rank".split()]
            text = json.dumps({**vars(self.options), **options}, default=str)
            command += [self._name, job, str(result), text]
            if where is None:
                command = [*mpirun(ranks), *command]
            else:
                command = where.mpirun(command, (1, ranks - 1))
            process = start(command, {**_QUIET, **(env or {})})
            try:
                ended = finish(process, seconds)
            except BaseException:
                _end(process)
                raise
            if ended.status != 0 or not result.exists():
                raise BenchmarkError(f"{job} ended with status {ended.status}:\n{ended.output}")
            return json.loads(result.read_text())


def run_on_rank(benchmark: Benchmark, job: str, options: Mapping[str, Any]) -> Any:
    """Call a function of `Benchmark.jobs` on this rank, with one thread. *Collective.*"""
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return benchmark.jobs[job](Namespace(**options))


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that ``finally`` clauses run."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[str]) -> None:
    """End a job: by SIGTERM, so that mpirun ends its ranks, and by SIGKILL after 10 s."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
