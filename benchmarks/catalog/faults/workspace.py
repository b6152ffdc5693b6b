"""The folders, inputs, plans and undisturbed runs of the disturbed jobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.catalog.faults.job import (
    TIMEOUT,
    Job,
    has_route,
    resize_file_system,
    running,
    small_file_system,
)
from benchmarks.catalog.faults.model import FAILURE_FILE, write_input
from pipepar.data.writers.journal import journal_of
from pipepar.data.writers.partial import partial_of
from tests.helpers.cluster.hosts import Hosts, set_link, two_hosts
from tests.helpers.cluster.mpirun import environment, mpirun
from tests.helpers.cluster.waiting import until

SILENCE: Final = 2.0
"""The silence timeout of the jobs, seconds."""
MICRO_BATCH: Final = 4
"""The samples of a micro-batch."""

_ROOT: Final = Path(__file__).parents[3]
_MODEL: Final = "benchmarks.catalog.faults.model"
_FAILURE: Final = "failure"
_MBIT: Final = 1000


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The ranks and formats of a job."""

    ranks: int
    """The number of ranks. On two hosts the last rank is on the second host."""
    input: str
    """The suffix of the input: .npy or .txt."""
    output: str
    """The suffix of the output: .npy or .jsonl."""


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The files of one job."""

    spec: JobSpec
    """The job."""
    folder: Path
    """The working directory, of this job alone."""
    input: Path
    """The input."""
    output: Path
    """The output."""
    plan: Path
    """The plan."""
    hosts: Hosts | None = None
    """Two hosts, if the job runs on two."""

    @property
    def part(self) -> Path:
        """The file of the rows until they are complete."""
        return partial_of(self.output)

    @property
    def journal(self) -> Path:
        """The journal."""
        return journal_of(self.output)

    @property
    def hidden(self) -> list[str]:
        """The names of the hidden files next to the output."""
        return sorted(path.name for path in self.output.parent.glob(f".{self.output.name}*"))

    def failure_file(self, rank: int) -> Path:
        """Return the file that makes the layers of a rank fail once it exists."""
        return self.folder / f"{_FAILURE}.{rank}"

    def digest(self) -> str:
        """Return the SHA-256 of the output."""
        return hashlib.sha256(self.output.read_bytes()).hexdigest()

    def command(self, *options: str) -> list[str]:
        """Return the command, including the launcher."""
        run = [sys.executable, "-m", "pipepar", "run", f"{_MODEL}:make"]
        run += [str(self.input), str(self.output), "--plan", str(self.plan), "--device", "cpu"]
        run += ["--micro-batch", str(MICRO_BATCH), *options]
        if self.spec.input == ".txt":
            run += ["--preprocess", f"{_MODEL}:encode"]
        if self.hosts is None:
            return [*mpirun(self.spec.ranks), *run]
        names = (*self.environment(), "OMP_NUM_THREADS")
        exported = [word for name in names for word in ("-x", name)]
        return self.hosts.mpirun([*exported, *run], (self.spec.ranks - 1, 1))

    def running(self, *options: str) -> contextlib.AbstractContextManager[Job]:
        """Start the command; the job is ended when the context ends."""
        return running(self.command(*options), self.folder, self.environment())

    def environment(self) -> dict[str, str]:
        """Return the additional environment variables of the job."""
        return {
            "PYTHONPATH": str(_ROOT),
            "TMPDIR": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder),
            "PIPEPAR_SILENCE_SECONDS": str(SILENCE),
            FAILURE_FILE: str(self.folder / _FAILURE),
        }


@dataclass(frozen=True, slots=True)
class UndisturbedRun:
    """The result of a job that was not disturbed."""

    digest: str
    """The SHA-256 of the output."""
    size: int
    """The bytes of the output."""
    samples: int
    """The number of samples."""
    seconds: float
    """The seconds from the opening of the output to the end."""

    @property
    def step(self) -> float:
        """The mean seconds between two micro-batches."""
        return self.seconds * MICRO_BATCH / self.samples


class Workspace:
    """Makes the folders of jobs, and caches inputs, plans and undisturbed runs.

    Args:
        folder: an empty folder.
        samples: the number of samples of an input.
    """

    def __init__(self, folder: Path, samples: int) -> None:
        self._samples = samples
        self._folder = folder
        self._undisturbed: dict[JobSpec, UndisturbedRun] = {}

    def undisturbed(self, spec: JobSpec) -> UndisturbedRun:
        """Return the result of a job without a disturbance; the first call runs it.

        Raises:
            RuntimeError: the job failed.
        """
        if spec not in self._undisturbed:
            self._undisturbed[spec] = self._run_undisturbed(spec)
        return self._undisturbed[spec]

    @contextlib.contextmanager
    def job_folder(
        self, spec: JobSpec, capacity: int | None = None, two: bool = False
    ) -> Iterator[JobFolder]:
        """Make the folder of a job, with an input and a plan; it is removed at the end.

        Args:
            spec: the job.
            capacity: the bytes of the output's file system; None for an ordinary folder.
            two: whether the job runs on two hosts.
        """
        with contextlib.ExitStack() as held:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(dir=self._folder)))
            (folder / "out").mkdir()
            if capacity is not None:
                held.enter_context(small_file_system(folder / "out", capacity))
            hosts = held.enter_context(two_hosts(_MBIT)) if two else None
            copy, output = folder / f"in{spec.input}", folder / "out" / f"out{spec.output}"
            shutil.copyfile(self._input(spec), copy)
            yield JobFolder(spec, folder, copy, output, self._plan(spec.ranks), hosts)

    def repair(self, files: JobFolder) -> None:
        """Remove the cause of a disturbance."""
        for rank in range(files.spec.ranks):
            files.failure_file(rank).unlink(missing_ok=True)
        shutil.copyfile(self._input(files.spec), files.input)
        if os.path.ismount(files.output.parent):
            resize_file_system(files.output.parent, 64 << 20)
        if files.hosts is not None:
            names, addresses = files.hosts.names, files.hosts.addresses
            for name in names:
                set_link(name, "up")
            # The hosts refuse connections until they have resolved each other's hardware address.
            pairs = list(zip(names, reversed(addresses), strict=True))
            until(lambda: all(has_route(*pair) for pair in pairs), 10)

    def _input(self, spec: JobSpec) -> Path:
        path = self._folder / f"input{spec.input}"
        if not path.exists():
            write_input(path, self._samples)
        return path

    def _run_undisturbed(self, spec: JobSpec) -> UndisturbedRun:
        with self.job_folder(spec) as files, files.running() as job:
            until(lambda: files.part.exists() or job.status is not None, TIMEOUT)
            begin = time.monotonic()
            until(lambda: files.output.exists() or job.status is not None, TIMEOUT)
            seconds = time.monotonic() - begin
            if not job.finish(TIMEOUT) or job.status != 0:
                raise RuntimeError(f"{spec} failed without a disturbance: {job.output}")
            print(f"undisturbed: {spec}, streams for {seconds:.1f} s", flush=True)
            size = files.output.stat().st_size
            return UndisturbedRun(files.digest(), size, self._samples, seconds)

    def _plan(self, ranks: int) -> Path:
        path = self._folder / f"plan{ranks}.json"
        if not path.exists():
            example = self._input(JobSpec(ranks, ".npy", ".npy"))
            command = [sys.executable, "-m", "pipepar", "plan", f"{_MODEL}:make"]
            command += ["--stages", str(ranks), "--input", str(example), "-o", str(path)]
            env = environment({"XDG_CACHE_HOME": str(self._folder)})
            planned = subprocess.run(
                command, env=env, timeout=TIMEOUT, check=False, capture_output=True, text=True
            )
            if planned.returncode != 0:
                raise RuntimeError(f"the plan failed: {planned.stdout}{planned.stderr}")
        return path
