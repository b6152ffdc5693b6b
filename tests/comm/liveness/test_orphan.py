"""The common end of ranks and launchers, with scripts as launchers."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.cluster.mpirun import environment

pytestmark = pytest.mark.long(10)

ROOT = str(Path(__file__).parents[3])
MARK = "PIPEPAR_TEST_MARK"
PATIENCE = 30.0

# Like mpirun, it starts a rank, whose output it reads to the end, and an agent, which would be the
# ssh to another host.
LAUNCHER = """#!{python}
import signal, subprocess, sys, time
agent = subprocess.Popen(["sleep", "600"])
signal.signal(signal.SIGTERM, signal.{terminated})
subprocess.check_output([sys.executable, "-c", '''{rank}'''])
print(agent.pid, flush=True)
{then}
"""
RANK = """
import os
from pipepar.comm.liveness.orphan import end_launcher, end_with_launcher
end_with_launcher(os.getppid())
end_launcher()
end_launcher()
"""
STAY = "time.sleep(600)"


class Launched:
    """A launcher whose rank has ended the job."""

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
        """Return its processes except the launcher and the agent."""
        return self.all() - {self.process.pid, self.agent}

    def all(self) -> set[int]:
        """Return its processes."""
        found = set()
        for process in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if self._mark in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                    found.add(int(process))
        return found

    def wait(self) -> int:
        """Wait until its output is closed and its other processes have ended; return its status."""
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
def test_a_hanging_launcher_is_ended(
    name: str, terminated: str, status: int, tmp_path: Path
) -> None:
    with launched(tmp_path, name, terminated=terminated) as job:
        assert len(job.others()) == 1
        assert job.wait() == -status
        assert not job.all()  # the agent was ended, too


def test_a_launcher_that_ends_by_itself_keeps_its_status(tmp_path: Path) -> None:
    with launched(tmp_path, "prted", then="sys.exit(3)") as job:
        job.process.wait(PATIENCE)
        os.kill(job.agent, signal.SIGKILL)  # it would keep the output open
        assert job.wait() == 3


@pytest.mark.parametrize(
    ("name", "namespace"),
    [("slurmstepd", "slurm.pmix.7.0"), ("wrapper.sh", ""), ("prted", "prte-here-7@3")],
)
def test_other_parents_are_not_ended(name: str, namespace: str, tmp_path: Path) -> None:
    with launched(tmp_path, name, PMIX_NAMESPACE=namespace) as job:
        assert not job.others()


# A rank that maps files of shared memory of Open MPI, and other files. It ends before a launcher
# that hangs.
SHARING = """
import mmap, os, sys, time
from pathlib import Path
from pipepar.comm.liveness.orphan import end_launcher, end_with_launcher
maps = []
for name in sys.argv[3:]:
    Path(name).write_bytes(bytes(4096))
    with open(name, "r+b") as file:
        maps.append(mmap.mmap(file.fileno(), 4096))
end_with_launcher(os.getppid() if sys.argv[2] == "parent" else 1 << 21)
print(os.getpid(), flush=True)
if sys.argv[1] == "hangs":
    end_launcher()
else:
    time.sleep(600)
"""
PARENT = """#!{python}
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
time.sleep(600)
"""


@pytest.fixture
def shared() -> Iterator[list[Path]]:
    """Return paths of this test: two that a launcher would remove, and two others."""
    mark = f"pipepar-test-{os.getpid()}"
    names = [f"sm_segment.{mark}.0", f"vader_segment.{mark}.0", f"{mark}.sm_segment.0", mark]
    paths = [Path("/dev/shm", name) for name in names]
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def exist(paths: list[Path]) -> list[bool]:
    return [path.exists() for path in paths]


@pytest.mark.parametrize("ends", ["hangs", "is killed"])
def test_shared_memory_of_a_killed_launcher_is_removed(
    ends: str, shared: list[Path], tmp_path: Path
) -> None:
    launcher = tmp_path / "prterun"
    launcher.write_text(PARENT.format(python=sys.executable))
    launcher.chmod(0o755)
    command = [str(launcher), SHARING, ends, "parent", *map(str, shared)]
    env = environment({"PYTHONPATH": ROOT})
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout
        rank = int(process.stdout.readline())
        assert exist(shared) == [True] * 4
        if ends == "is killed":
            handle = os.pidfd_open(rank)
            process.kill()
            assert select.select([handle], [], [], PATIENCE)[0], "the rank outlives its launcher"
            os.close(handle)
        else:  # the launcher ignores SIGTERM and is killed
            assert process.wait(PATIENCE) == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE
    while any(exist(shared[:2])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert exist(shared) == [False, False, True, True]


def test_a_rank_whose_launcher_has_already_ended_ends_at_once(shared: list[Path]) -> None:
    """The kernel sends no signal for a parent that has ended before."""
    command = [sys.executable, "-c", SHARING, "stays", "another", *map(str, shared)]
    ended = subprocess.run(command, env=environment({"PYTHONPATH": ROOT}), timeout=PATIENCE)
    assert ended.returncode == -signal.SIGKILL
    assert exist(shared) == [False, False, True, True]
