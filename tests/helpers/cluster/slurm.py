"""A real Slurm for tests, with two simulated hosts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.helpers.cluster import hosts
from tests.helpers.cluster.mpirun import Finished, finish, start

INSTALL: Final = "PIPEPAR_INSTALL_SLURM"
"""Variable that is 1 to install missing packages of Debian, if that is safe; see install.sh."""
_ROOT: Final = Path(__file__).parents[3]
_PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
# srun --mpi=pmix opens the library name without a version, which only the -dev package contains.
_PMIX: Final = "usr/lib/*/pmix2/lib/libpmix.so"
_OVER: Final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running Slurm; its commands run on the first host."""

    hosts: hosts.Hosts
    folder: Path

    def run(
        self, *command: object, seconds: float = 120, env: Mapping[str, str] | None = None
    ) -> Finished:
        """Run a command on the first host to its end, with a time limit."""
        words = self.hosts.on(0, [str(word) for word in command])
        place = {"SLURM_CONF": str(self.folder / "slurm.conf"), "COLUMNS": "200"}
        return finish(start(words, place | dict(env or {})), seconds)

    def sbatch(self, *words: object, env: Mapping[str, str] | None = None) -> str:
        """Submit a job in the checkout, with output in job-ID.out; return its id."""
        output = f"--output={self.folder}/job-%j.out"
        done = self.run("sbatch", "--parsable", f"--chdir={_ROOT}", output, *words, env=env)
        assert done.status == 0, done.output
        return done.output.split()[-1]

    def show(self, job: str) -> dict[str, str]:
        """Return the fields of a job, as of `scontrol show job`."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job).output
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def wait(self, job: str, *states: str, seconds: float = 150) -> dict[str, str]:
        """Wait until a job is in one of some states, by default a final one; return its fields."""
        end = time.monotonic() + seconds
        while (found := self.show(job)).get("JobState") not in (states or _OVER):
            assert time.monotonic() < end, f"{found}\n{self.output(job)}"
            time.sleep(0.3)
        return found

    def output(self, job: str) -> str:
        """Return what a job has written so far."""
        path = self.folder / f"job-{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""


def obstacle() -> str | None:
    """Return why Slurm cannot run, or None if it can; installs packages if `INSTALL` is set."""
    reason = hosts.obstacle()
    if reason is None and _missing() and os.environ.get(INSTALL) == "1":
        done = subprocess.run(
            [Path(__file__).with_name("install.sh")],
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )
        reason = done.stderr.strip() if done.returncode else None
    if reason is None and _missing():
        reason = f"no {', '.join(_missing())}: install Debian's slurmctld, slurmd, slurm-client, "
        reason += f"munge and libpmix-dev, or set {INSTALL}=1 in a container"
    return reason


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a Slurm of two nodes; stop it and its jobs after the body."""
    # A short path, since it contains sockets.
    with (
        tempfile.TemporaryDirectory(prefix="pp-", dir="/tmp") as folder,
        hosts.hosts(["", ""]) as up,
    ):
        script = [str(Path(__file__).with_name("slurm.sh")), folder]
        places = [f"{name}={place}" for name, place in zip(up.names, up.addresses, strict=True)]
        _call(up, 0, *script, "configure", *places)
        try:
            _call(up, 0, *script, "controller")
            for host in range(len(up.names)):
                _call(up, host, *script, "node")
            _call(up, 0, *script, "ready")
            yield Cluster(up, Path(folder))
        finally:
            # Remaining processes are ended with the hosts.
            finish(start(up.on(0, [*script, "stop"])), 20)


def _call(up: hosts.Hosts, host: int, *command: str) -> None:
    # A file, since daemons would keep an inherited pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            up.on(host, command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=60,
        )
        output.seek(0)
        assert done.returncode == 0, output.read()


def _missing() -> list[str]:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    return missing or ([] if any(Path("/").glob(_PMIX)) else ["libpmix.so"])
