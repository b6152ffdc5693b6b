"""The jobs that `faults` disturbs: started, watched from outside, and looked for afterwards.

Every process is found by its parents, from this program down, never by a name. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.helpers.cluster.mpirun import environment
from tests.helpers.cluster.waiting import until

_PR_SET_CHILD_SUBREAPER: Final = 36
PATIENCE: Final = 120.0
"""Seconds for what nothing disturbs, on a busy machine."""

_PROBE: Final = (
    "import socket, sys; s = socket.socket(); s.settimeout(2); "
    "print(s.connect_ex((sys.argv[1], 9)))"
)
# What a rank says of itself or another, and what the launcher says of a rank that was killed.
_BLOCK: Final = "### pipepar: rank"
_NAMED: Final = re.compile(rf"{_BLOCK} (\d+) of|noticed that process rank (\d+) with PID")
_KEPT: Final = re.compile(r"resuming: ([\d,]+) of [\d,]+ samples are done already")


class Job:
    """A command that has been started, and all the processes that come of it."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        """Start it; what it prints goes to a file."""
        self._said = folder / "said.txt"
        self._shared: set[str] = set()
        with self._said.open("w") as said:
            self._launcher = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def launcher(self) -> int:
        """Its process id."""
        return self._launcher.pid

    @property
    def status(self) -> int | None:
        """Exit status of the launcher; None while it runs."""
        return self._launcher.poll()

    @property
    def said(self) -> str:
        """What all have printed, each run of white space as one space."""
        return " ".join(self._said.read_text(errors="replace").split())

    @property
    def last_words(self) -> str:
        """The end of what all have printed, for a report."""
        return self.said[-3000:]

    @property
    def named(self) -> list[int]:
        """The ranks that it says are to blame, as often as it says so."""
        return [int(a or b) for a, b in _NAMED.findall(self.said)]

    @property
    def blocks(self) -> int:
        """How often pipepar says who is to blame."""
        return self.said.count(_BLOCK)

    @property
    def remedies(self) -> int:
        """How often it tells how to go on."""
        return self.said.count("run again with --resume")

    @property
    def kept(self) -> int:
        """Samples that it says it did not have to do again."""
        found = _KEPT.search(self.said)
        return int(found[1].replace(",", "")) if found else 0

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that live, by rank; remembers what memory they share."""
        found: dict[int, int] = {}
        for process in living():
            with contextlib.suppress(OSError, KeyError):
                found.setdefault(_rank_of(process), process)
                self._shared |= _shared_by(process)
        return found

    def left(self) -> str:
        """What is left of it that should be gone; empty if nothing is."""
        processes = [f"process {process} ({_words_of(process)})" for process in living()]
        files = [path for path in sorted(self._shared) if os.path.exists(path)]
        return ", ".join(processes + files)

    def finish(self, seconds: float) -> bool:
        """Wait for the end of all its processes; whether it came in time."""
        return until(lambda: self.status is not None and not living(), seconds)

    def end(self) -> None:
        """End what there still is, which by its parents can only be ours."""
        deadline = time.monotonic() + 10
        while (processes := living()) and time.monotonic() < deadline:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)
        for path in self._shared:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._launcher.wait(10)
        for orphan in _children(os.getpid()):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)


@contextlib.contextmanager
def running(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Iterator[Job]:
    """A job that is ended at the latest when the body is over."""
    job = Job(command, folder, env)
    try:
        yield job
    finally:
        job.end()


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of what a launcher leaves behind."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def living() -> list[int]:
    """Processes below this one that are not dead, parents first."""
    found: list[int] = []
    row = _children(os.getpid())
    while row:
        found += row
        row = [child for process in row for child in _children(process)]
    return [process for process in found if not _is_dead(process)]


def alive(processes: Mapping[int, int]) -> list[int]:
    """The ranks, of these process ids by rank, that are not dead."""
    return [rank for rank, process in processes.items() if not _is_dead(process)]


def enlarge(folder: Path, size: int) -> None:
    """Give a file system another size, bytes."""
    _call("mount", "-o", f"remount,size={size}", str(folder))


def reaches(host: str, address: str) -> bool:
    """Whether a host comes through to an address, where nobody listens on port 9."""
    said = _call("ip", "netns", "exec", host, sys.executable, "-c", _PROBE, address)
    return int(said) == errno.ECONNREFUSED


@contextlib.contextmanager
def file_system(folder: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes."""
    _call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        _call("umount", "--lazy", str(folder))


def _call(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    return done.stdout


def _children(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _is_dead(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2]
    except OSError:
        return True
    return state.split()[0] in "ZX"


def _rank_of(process: int) -> int:
    words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return int(dict(word.split(b"=", 1) for word in words if b"=" in word)[b"PMIX_RANK"])


def _shared_by(process: int) -> set[str]:
    maps = Path(f"/proc/{process}/maps").read_text(errors="replace")
    return set(re.findall(r"/dev/shm/\S+", maps))


def _words_of(process: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words)[:80].decode(errors="replace")
    return "gone by now"
