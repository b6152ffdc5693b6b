"""Several ranks as threads of this process, with in-process channels between them."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import pytest

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.inproc import InprocChannel
from pipepar.comm.channels.link import Link
from pipepar.comm.group.root_mailbox import RootMailbox
from pipepar.comm.liveness.heartbeat import Heartbeat
from pipepar.comm.world import World
from pipepar.microbatch import MicroBatch

T = TypeVar("T")
LIMIT = 60.0
"""Seconds that a rank waits for another one."""


class Aborted(BaseException):
    """A rank has ended the job."""


class Turn:
    """One rank at a time, as long as it waits for no other; making a model patches torch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()

    @contextmanager
    def taken(self) -> Iterator[None]:
        if getattr(self._own, "has", False):
            yield
            return
        with self._lock:
            self._own.has = True
            try:
                yield
            finally:
                self._own.has = False

    @contextmanager
    def left(self) -> Iterator[None]:
        """While this rank waits for another one."""
        if not getattr(self._own, "has", False):
            yield
            return
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class Channel(InprocChannel):
    """One whose ends wait without the turn."""

    def __init__(self, depth: int, turn: Turn) -> None:
        super().__init__(depth)
        self._turn = turn

    def put(self, item: MicroBatch | None) -> None:
        with self._turn.left():
            super().put(item)

    def take(self) -> MicroBatch | None:
        with self._turn.left():
            return super().take()


class Group:
    """What the ranks of one job share.

    Attributes:
        channels: those that were connected last, by their ids.
        report: what the first rank that ended the job told; None as long as none did.
        ended: whether a rank has ended the job, or failed.
    """

    def __init__(self, size: int, hosts: list[str] | None = None, room: int = 0) -> None:
        self.size = size
        self.room = room
        self.hosts = hosts or [platform.node()] * size
        self.channels: dict[int, Channel] = {}
        self.turn = Turn()
        self.report: str | None = None
        self.ended = threading.Event()
        self._texts = [""] * size
        self._barrier = threading.Barrier(size, timeout=LIMIT)
        self._lock = threading.Lock()

    def all_gather(self, rank: int, text: str) -> list[str]:
        self._texts[rank] = text
        try:
            with self.turn.left():
                self._barrier.wait()
                texts = list(self._texts)
                self._barrier.wait()
        except threading.BrokenBarrierError:
            raise Aborted(self.report or "another rank failed") from None
        return texts

    def channel(self, number: int, link: Link) -> Channel:
        """The same for both ends."""
        with self._lock:
            made = Channel(2 * link.depth + self.room, self.turn)
            return self.channels.setdefault(number, made)

    def abort(self, report: str | None = None) -> None:
        with self._lock:
            self.report = self.report or report
        self.ended.set()
        self._barrier.abort()
        for channel in self.channels.values():
            channel.abort()


class ThreadWorld(World):
    """One rank of a `Group`, in the thread that calls it."""

    def __init__(self, group: Group, rank: int) -> None:
        self.group = group
        self._comm = None
        self.rank, self.size = rank, group.size
        self.heartbeat = _Kept()
        self.hosts, self.host = group.hosts, group.hosts[rank]
        self.cores = self._gather_cores()

    def broadcast(self, text: str) -> str:
        return self.all_gather(text)[0]

    def all_gather(self, text: str) -> list[str]:
        return self.group.all_gather(self.rank, text)

    def gather(self, text: str, root: int) -> list[str] | None:
        texts = self.all_gather(text)
        return texts if self.rank == root else None

    def together(self, action: Callable[[], T]) -> T:
        def alone() -> T:
            with self.group.turn.taken():
                return action()

        return super().together(alone)

    def bind(self, cores: Iterable[int] | None) -> None:
        self.cores = self._gather_cores()

    def connect(
        self, links: Iterable[Link], gpu: Any = None, watch: Any = None
    ) -> tuple[dict[int, Receiver], dict[int, Sender]]:
        links = list(links)
        self.all_gather("")
        if self.rank == 0:
            self.group.channels.clear()
        self.all_gather("")
        receivers: dict[int, Receiver] = {}
        senders: dict[int, Sender] = {}
        for number, link in enumerate(links):
            if link.consumer == self.rank:
                receivers[number] = self.group.channel(number, link).receiver
            if link.producer == self.rank:
                senders[number] = self.group.channel(number, link).sender
        return receivers, senders

    def mailbox(self) -> RootMailbox:
        return RootMailbox(None, self.root)

    def close(self) -> None:
        self.all_gather("")

    def abort(self, report: str) -> NoReturn:
        if not report:  # another rank tells
            self.group.ended.wait(LIMIT)
        self.group.abort(report)
        raise Aborted(self.group.report)


class _Kept(Heartbeat):
    """Ranks that are threads end with their process."""

    @property
    def kept(self) -> bool:
        return True


@contextmanager
def worlds_by_thread(group: Group) -> Iterator[Callable[[int], None]]:
    """`World.start` gives each thread the rank that it has been told to be."""
    own = threading.local()

    def become(rank: int) -> None:
        own.world = ThreadWorld(group, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "start", classmethod(lambda cls, *options: own.world))
        yield become


def in_threads(
    size: int, work: Callable[[World], T], hosts: list[str] | None = None, room: int = 0
) -> list[T]:
    """Do some work on so many ranks at once; what each returned.

    Args:
        size: how many.
        work: is given its rank of the job.
        hosts: names of their machines.
        room: micro-batches that channels hold beyond their depth, as MPI's may that are small.

    Raises:
        Aborted: a rank ended the job.
        BaseException: a rank raised it.
    """
    group = Group(size, hosts, room)
    results: dict[int, T] = {}
    failures: list[BaseException] = []

    def rank(number: int) -> None:
        try:
            become(number)
            results[number] = work(World.start())
        except BaseException as failure:
            failures.append(failure)
            group.abort()

    hook = threading.excepthook
    with worlds_by_thread(group) as become:
        threads = [threading.Thread(target=rank, args=(each,)) for each in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    threading.excepthook = hook  # each rank's `FailTogether` replaced that of the one before
    assert not any(thread.is_alive() for thread in threads)
    if group.report:
        raise Aborted(group.report)
    for failure in failures:
        if not isinstance(failure, Aborted):
            raise failure
    return [results[each] for each in range(size)]
