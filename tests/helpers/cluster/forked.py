"""Ranks that are forks of this process: they exchange heartbeats without MPI and a launcher.

Collective calls exchange files. `Job.wait` waits until a rank aborts the job, as a launcher does.
"""

from __future__ import annotations

import itertools
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias, cast

from pipepar.comm.group.group import Group, T
from pipepar.comm.liveness.heartbeat import Heartbeat
from pipepar.comm.world import World
from pipepar.supervision.watchdog import keep_watch

Part: TypeAlias = Callable[["Forked"], None]
"""The function of a rank, called when all watchdogs are running."""

_POLL_SECONDS = 0.002


class Forked(Group):
    """The part of `World` that the watchdog uses."""

    def __init__(self, rank: int, size: int, folder: Path) -> None:
        self.rank = rank
        self.size = size
        self.host = platform.node()
        self.hosts = [self.host] * size
        self.heartbeat = Heartbeat()
        self._folder = folder
        self._calls = itertools.count()

    def all_gather(self, text: str) -> list[str]:
        call = next(self._calls)
        paths = [self._folder / f"all-gather-{call}-{rank}" for rank in range(self.size)]
        hidden = paths[self.rank].with_suffix(".part")
        hidden.write_text(text)
        hidden.rename(paths[self.rank])
        with self.heartbeat.waiting():
            while not all(path.exists() for path in paths):
                time.sleep(_POLL_SECONDS)
        return [path.read_text() for path in paths]

    def broadcast(self, text: str) -> str:
        return self.all_gather(text)[0]

    def together(self, action: Callable[[], T]) -> T:
        result = action()
        self.all_gather("")
        return result

    def abort(self, report: str) -> NoReturn:
        os.write(2, f"{report}\n".encode())
        os._exit(1)

    def mark(self, name: str) -> None:
        """Write the time at which this rank has reached a point, for the test."""
        (self._folder / f"{name}-{self.rank}").write_text(f"{time.monotonic()}")

    def close(self) -> None:
        """Do what `World.close` does with the heartbeat."""
        self.all_gather("")
        self.heartbeat.close()


class Job:
    """The processes of a job; see `jobs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[int] = []
        self.status: dict[int, int] = {}
        """The exit codes of the ranks that have ended, as of `os.waitstatus_to_exitcode`."""

    def stderr(self, rank: int) -> str:
        """Return what a rank has written to its standard error."""
        return (self.folder / f"stderr-{rank}").read_text(errors="replace")

    def reporters(self) -> list[int]:
        """Return the ranks that have printed a final report."""
        return [k for k in range(len(self.processes)) if "### pipepar" in self.stderr(k)]

    def stacks(self) -> str:
        """Return the stacks that all ranks have written."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("pipepar-stacks-*")))

    def seconds_from(self, name: str, rank: int) -> float:
        """Wait until a rank has called `Forked.mark`; return the seconds since then."""
        path = self.folder / f"{name}-{rank}"
        while not path.exists() or not (text := path.read_text()):
            assert rank not in self.status, f"rank {rank} has ended: {self.stderr(rank)}"
            self.poll()
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - float(text)

    def poll(self) -> None:
        """Note the exit codes of the ranks that have ended."""
        for rank, process in enumerate(self.processes):
            if rank not in self.status:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.status[rank] = os.waitstatus_to_exitcode(status)

    def wait(self, seconds: float) -> None:
        """Wait until a rank aborts the job, or all ranks have ended."""
        self._until(lambda: 1 in self.status.values(), seconds)

    def wait_for(self, ranks: Iterable[int], seconds: float) -> None:
        """Wait until these ranks have ended."""
        self._until(lambda: set(ranks) <= set(self.status), seconds)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and len(self.status) < len(self.processes):
            printed = {rank: self.stderr(rank) for rank in range(len(self.processes))}
            assert time.monotonic() < deadline, f"ended: {self.status}, printed: {printed}"
            time.sleep(_POLL_SECONDS)
            self.poll()

    def kill(self) -> None:
        for rank, process in enumerate(self.processes):
            if rank not in self.status:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


@dataclass(frozen=True)
class Case:
    """A job of several ranks."""

    size: int
    """The number of ranks."""
    part: Part
    """The function of each rank; afterwards the rank waits for the others, and ends."""
    limits: Mapping[str, float]
    """Timeouts in seconds, by the middle of the variable's name, such as SILENCE."""
    complete: Callable[[str], str] = lambda block: block
    """See `keep_watch`."""


@contextmanager
def jobs(folder: Path, cases: Mapping[str, Case]) -> Iterator[dict[str, Job]]:
    """Start jobs, each in its own folder; kill those that still run after the body.

    Yields:
        The jobs by name.
    """
    started: dict[str, Job] = {}
    try:
        for name, case in cases.items():
            started[name] = Job(folder / name)
            _start(started[name], case)
        yield started
    finally:
        for each in started.values():
            each.kill()


@contextmanager
def job(folder: Path, case: Case) -> Iterator[Job]:
    """Start one job; see `jobs`."""
    with jobs(folder, {"job": case}) as started:
        yield started["job"]


def _start(started: Job, case: Case) -> None:
    started.folder.mkdir()
    for rank in range(case.size):
        (started.folder / f"stderr-{rank}").touch()
        process = os.fork()
        if process == 0:
            _run_rank(Forked(rank, case.size, started.folder), started.folder, case)
        started.processes.append(process)


def _run_rank(world: Forked, folder: Path, case: Case) -> NoReturn:
    status = 70
    try:
        os.dup2(os.open(folder / f"stderr-{world.rank}", os.O_WRONLY | os.O_APPEND), 2)
        os.chdir(folder)
        for name, seconds in case.limits.items():
            os.environ[f"PIPEPAR_{name}_SECONDS"] = str(seconds)
        keep_watch(cast("World", world), case.complete)
        case.part(world)
        world.close()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(status)
