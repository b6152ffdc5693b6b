"""The processes of a disturbed job: start, observation from outside, and leftovers.

Processes are found as descendants of this process, never by name. Linux only.
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
TIMEOUT: Final = 120.0
"""The time limit of a step that is not disturbed, for a busy machine, seconds."""

_PROBE: Final = (
    "import socket, sys; s = socket.socket(); s.settimeout(2); "
    "print(s.connect_ex((sys.argv[1], 9)))"
)
# Error blocks of pipepar, and the message of the launcher about a rank that was killed.
_BLOCK: Final = "### pipepar: rank"
_NAMED: Final = re.compile(rf"{_BLOCK} (\d+) of|noticed that process rank (\d+) with PID")
_KEPT: Final = re.compile(r"resuming: ([\d,]+) of [\d,]+ samples are done already")


class Job:
    """A running command with all its processes.

    Args:
        command: the command, including the launcher.
        folder: the working directory, which gets a file with the output.
        env: additional environment variables.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self._log = folder / "log.txt"
        self._shared: set[str] = set()
        with self._log.open("w") as log:
            self._launcher = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def launcher(self) -> int:
        """The process id of the launcher."""
        return self._launcher.pid

    @property
    def status(self) -> int | None:
        """The exit status of the launcher; None while it runs."""
        return self._launcher.poll()

    @property
    def output(self) -> str:
        """The output of all processes, with each run of white space as one space."""
        return " ".join(self._log.read_text(errors="replace").split())

    @property
    def last_output(self) -> str:
        """The end of the output, for a message."""
        return self.output[-3000:]

    @property
    def named(self) -> list[int]:
        """The failed ranks that the output names, in order and with repetitions."""
        return [int(a or b) for a, b in _NAMED.findall(self.output)]

    @property
    def blocks(self) -> int:
        """The number of error blocks."""
        return self.output.count(_BLOCK)

    @property
    def remedies(self) -> int:
        """The number of hints to use --resume."""
        return self.output.count("run again with --resume")

    @property
    def kept(self) -> int:
        """The samples of the previous job that a resumed job does not repeat, by its output."""
        found = _KEPT.search(self.output)
        return int(found[1].replace(",", "")) if found else 0

    def ranks(self) -> dict[int, int]:
        """Return the process ids of the live ranks, by rank; record their shared memory files."""
        found: dict[int, int] = {}
        for process in descendants():
            with contextlib.suppress(OSError, KeyError):
                found.setdefault(_rank_of(process), process)
                self._shared |= _shared_by(process)
        return found

    def left(self) -> str:
        """Describe processes and files that still exist; empty if there are none."""
        processes = [f"process {each} ({_command_of(each)})" for each in descendants()]
        files = [path for path in sorted(self._shared) if os.path.exists(path)]
        return ", ".join(processes + files)

    def finish(self, seconds: float) -> bool:
        """Wait until all processes have ended; return whether they did in time."""
        return until(lambda: self.status is not None and not descendants(), seconds)

    def end(self) -> None:
        """Kill all descendants, and remove the shared memory files."""
        deadline = time.monotonic() + 10
        while (processes := descendants()) and time.monotonic() < deadline:
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
    """Start a job; all its processes are ended when the context ends."""
    job = Job(command, folder, env)
    try:
        yield job
    finally:
        job.end()


def adopt_orphans() -> None:
    """Make this process the parent of processes that outlive their launcher.

    Raises:
        OSError: the kernel refused.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants() -> list[int]:
    """Return the live descendants of this process, parents first."""
    found: list[int] = []
    row = _children(os.getpid())
    while row:
        found += row
        row = [child for process in row for child in _children(process)]
    return [process for process in found if not _is_dead(process)]


def alive(processes: Mapping[int, int]) -> list[int]:
    """Return the ranks whose process is alive.

    Args:
        processes: process ids by rank.
    """
    return [rank for rank, process in processes.items() if not _is_dead(process)]


def resize_file_system(folder: Path, size: int) -> None:
    """Change the size of a `small_file_system`, bytes."""
    _call("mount", "-o", f"remount,size={size}", str(folder))


def has_route(host: str, address: str) -> bool:
    """Return whether a host reaches an address: its closed port 9 refuses the connection."""
    error = _call("ip", "netns", "exec", host, sys.executable, "-c", _PROBE, address)
    return int(error) == errno.ECONNREFUSED


@contextlib.contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes on a folder."""
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


def _command_of(process: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words)[:80].decode(errors="replace")
    return "already ended"
