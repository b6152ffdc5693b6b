"""A launcher that does not end with its job is ended; nothing that is not of one job is touched."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.cluster.mpirun import environment

ROOT = str(Path(__file__).parents[3])
MARK = "PIPEPAR_TEST_MARK"
PATIENCE = 30.0

# Like mpirun it has a rank, and a process that leads to another host.
LAUNCHER = """#!{python}
import signal, subprocess, sys, time
agent = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGTERM, signal.{terminated})
subprocess.run([sys.executable, "-c", '''{rank}'''], check=True)
print(agent.pid, flush=True)
{then}
"""
RANK = """
import os
from pipepar.comm.orphan import end_launcher, end_with_launcher
end_with_launcher(os.getppid())
end_launcher()
end_launcher()
"""
STAY = "time.sleep(600)"


class Launched:
    """A launcher whose rank has come to the end of the job."""

    def __init__(
        self, folder: Path, name: str, terminated: str = "SIG_DFL", then: str = STAY, **env: str
    ) -> None:
        self._mark = f"{MARK}={folder}".encode()
        script = folder / name
        words = {"python": sys.executable, "rank": RANK, "terminated": terminated, "then": then}
        script.write_text(LAUNCHER.format(**words))
        script.chmod(0o755)
        env = environment({MARK: str(folder), "PYTHONPATH": ROOT} | env)
        self.process = subprocess.Popen([script], env=env, stdout=subprocess.PIPE)
        assert self.process.stdout
        self.agent = int(self.process.stdout.readline())

    def others(self) -> set[int]:
        """Its processes that are neither itself nor what it has started."""
        return self.all() - {self.process.pid, self.agent}

    def all(self) -> set[int]:
        """Its processes."""
        found = set()
        for process in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if self._mark in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                    found.add(int(process))
        return found

    def wait(self) -> int:
        """Its exit status, once nobody holds what it prints to and nobody watches it any more."""
        self.process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while self.others() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.others()
        return self.process.returncode


@contextmanager
def launched(folder: Path, name: str, **words: str) -> Iterator[Launched]:
    job = Launched(folder, name, **words)
    try:
        yield job
    finally:
        for process in job.all():
            os.kill(process, signal.SIGKILL)
        job.process.communicate()


@pytest.mark.parametrize(
    ("name", "terminated", "status"),
    [("prterun", "SIG_IGN", signal.SIGKILL), ("hydra_pmi_proxy", "SIG_DFL", signal.SIGTERM)],
)
def test_a_launcher_that_hangs_is_ended(
    name: str, terminated: str, status: int, tmp_path: Path
) -> None:
    with launched(tmp_path, name, terminated=terminated) as job:
        assert len(job.others()) == 1
        assert job.wait() == -status
        assert not job.all()  # its agent is none that anybody would end otherwise


def test_a_launcher_that_ends_is_left_alone(tmp_path: Path) -> None:
    with launched(tmp_path, "prted", then="sys.exit(3)") as job:
        job.process.wait(PATIENCE)
        os.kill(job.agent, signal.SIGKILL)  # which is still there
        assert job.wait() == 3


@pytest.mark.parametrize(
    ("name", "namespace"),
    [("slurmstepd", "slurm.pmix.7.0"), ("wrapper.sh", ""), ("prted", "prte-here-7@3")],
)
def test_what_is_not_of_one_job_is_left_alone(name: str, namespace: str, tmp_path: Path) -> None:
    with launched(tmp_path, name, PMIX_NAMESPACE=namespace) as job:
        assert not job.others()
