"""Ranks that are forks of this process: they beat as a job's do, but need no MPI and no launcher.

What they tell one another in the beginning goes by files. As a launcher does, `Job.wait` ends the
others when one ends the job.
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
"""What a rank does once all watch over one another."""

_LOOK_SECONDS = 0.002


class Forked(Group):
    """In the place of `World`, as far as the watchdog needs one."""

    def __init__(self, rank: int, size: int, folder: Path) -> None:
        self.rank = rank
        self.size = size
        self.host = platform.node()
        self.hosts = [self.host] * size
        self.heartbeat = Heartbeat()
        self._folder = folder
        self._meetings = itertools.count()

    def all_gather(self, text: str) -> list[str]:
        meeting = next(self._meetings)
        paths = [self._folder / f"meeting-{meeting}-{rank}" for rank in range(self.size)]
        hidden = paths[self.rank].with_suffix(".part")
        hidden.write_text(text)
        hidden.rename(paths[self.rank])
        with self.heartbeat.waiting():
            while not all(path.exists() for path in paths):
                time.sleep(_LOOK_SECONDS)
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
        """Tell the test that this rank has come so far."""
        (self._folder / f"{name}-{self.rank}").write_text(f"{time.monotonic()}")

    def close(self) -> None:
        """As a world is closed."""
        self.all_gather("")
        self.heartbeat.close()


class Job:
    """Ranks that were started; see `jobs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[int] = []
        self.status: dict[int, int] = {}
        """By rank, as `os.waitstatus_to_exitcode` tells it, of those that have ended."""

    def said(self, rank: int) -> str:
        """What a rank has written to its standard error."""
        return (self.folder / f"said-{rank}").read_text(errors="replace")

    def tellers(self) -> list[int]:
        """Ranks that told the user of the end."""
        return [k for k in range(len(self.processes)) if "### pipepar" in self.said(k)]

    def stacks(self) -> str:
        """What all ranks wrote."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("pipepar-stacks-*")))

    def seconds_from(self, name: str, rank: int) -> float:
        """How long ago a rank came as far as `Forked.mark` says; it waits for that."""
        path = self.folder / f"{name}-{rank}"
        while not path.exists() or not (text := path.read_text()):
            assert rank not in self.status, f"rank {rank} has ended: {self.said(rank)}"
            self.look()
            time.sleep(_LOOK_SECONDS)
        return time.monotonic() - float(text)

    def look(self) -> None:
        """See which ranks have ended."""
        for rank, process in enumerate(self.processes):
            if rank not in self.status:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    self.status[rank] = os.waitstatus_to_exitcode(status)

    def wait(self, seconds: float) -> None:
        """Wait until a rank ends the job, or all have ended."""
        self._until(lambda: 1 in self.status.values(), seconds)

    def wait_for(self, ranks: Iterable[int], seconds: float) -> None:
        """Wait until these have ended."""
        self._until(lambda: set(ranks) <= set(self.status), seconds)

    def _until(self, come: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not come() and len(self.status) < len(self.processes):
            said = {rank: self.said(rank) for rank in range(len(self.processes))}
            assert time.monotonic() < deadline, f"ended: {self.status}, said: {said}"
            time.sleep(_LOOK_SECONDS)
            self.look()

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
    """How many."""
    part: Part
    """What each does; then it waits for the others, and ends."""
    limits: Mapping[str, float]
    """By the middle of the variable's name, such as SILENCE, in seconds."""
    complete: Callable[[str], str] = lambda block: block
    """See `keep_watch`."""


@contextmanager
def jobs(folder: Path, cases: Mapping[str, Case]) -> Iterator[dict[str, Job]]:
    """Jobs that run at the same time, a folder for each; they are gone when the body is over."""
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
    """A job by itself; see `jobs`."""
    with jobs(folder, {"job": case}) as started:
        yield started["job"]


def _start(started: Job, case: Case) -> None:
    started.folder.mkdir()
    for rank in range(case.size):
        (started.folder / f"said-{rank}").touch()
        process = os.fork()
        if process == 0:
            _be(Forked(rank, case.size, started.folder), started.folder, case)
        started.processes.append(process)


def _be(world: Forked, folder: Path, case: Case) -> NoReturn:
    status = 70
    try:
        os.dup2(os.open(folder / f"said-{world.rank}", os.O_WRONLY | os.O_APPEND), 2)
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
