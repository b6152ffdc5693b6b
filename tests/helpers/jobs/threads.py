"""Runs several ranks as threads of this process, connected by in-process channels."""

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
"""Seconds after which a rank stops waiting for another one."""


class Aborted(BaseException):
    """Another rank ended the job."""


class RankLock:
    """A lock for the work of a rank, released while it waits: making a model patches torch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()

    @contextmanager
    def held(self) -> Iterator[None]:
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
    def released(self) -> Iterator[None]:
        """Release the lock while this rank waits for another one."""
        if not getattr(self._own, "has", False):
            yield
            return
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()


class Channel(InprocChannel):
    """A channel that releases the lock while it waits."""

    def __init__(self, depth: int, lock: RankLock) -> None:
        super().__init__(depth)
        self._rank_lock = lock

    def put(self, item: MicroBatch | None) -> None:
        with self._rank_lock.released():
            super().put(item)

    def take(self) -> MicroBatch | None:
        with self._rank_lock.released():
            return super().take()


class Group:
    """The state that the ranks of one job share.

    Attributes:
        channels: the channels that were connected last, by their ids.
        report: the report of the first rank that ended the job; None while none did.
        ended: set when a rank ended the job or failed.
    """

    def __init__(self, size: int, hosts: list[str] | None = None, room: int = 0) -> None:
        self.size = size
        self.room = room
        self.hosts = hosts or [platform.node()] * size
        self.channels: dict[int, Channel] = {}
        self.lock = RankLock()
        self.report: str | None = None
        self.ended = threading.Event()
        self._texts = [""] * size
        self._barrier = threading.Barrier(size, timeout=LIMIT)
        self._lock = threading.Lock()

    def all_gather(self, rank: int, text: str) -> list[str]:
        self._texts[rank] = text
        try:
            with self.lock.released():
                self._barrier.wait()
                texts = list(self._texts)
                self._barrier.wait()
        except threading.BrokenBarrierError:
            raise Aborted(self.report or "another rank failed") from None
        return texts

    def channel(self, number: int, link: Link) -> Channel:
        """Return the channel with an id, the same for both ends."""
        with self._lock:
            channel = Channel(2 * link.depth + self.room, self.lock)
            return self.channels.setdefault(number, channel)

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
        self.heartbeat = _ThreadHeartbeat()
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
            with self.group.lock.held():
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
        if not report:  # another rank reports
            self.group.ended.wait(LIMIT)
        self.group.abort(report)
        raise Aborted(self.group.report)


class _ThreadHeartbeat(Heartbeat):
    """A heartbeat without an orphan check, since threads end with their process."""

    @property
    def is_running(self) -> bool:
        return True


@contextmanager
def worlds_by_thread(group: Group) -> Iterator[Callable[[int], None]]:
    """Yield a function that sets the rank that `World.start` returns in the calling thread."""
    own = threading.local()

    def become(rank: int) -> None:
        own.world = ThreadWorld(group, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "start", classmethod(lambda cls, *options: own.world))
        yield become


def in_threads(
    size: int, work: Callable[[World], T], hosts: list[str] | None = None, room: int = 0
) -> list[T]:
    """Run a function on several ranks at the same time, and return their results by rank.

    Args:
        size: number of ranks.
        work: called with the world of each rank.
        hosts: host name of each rank.
        room: additional micro-batches per channel, as MPI may buffer small messages.

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
    threading.excepthook = hook  # `FailTogether` of each rank replaced it
    assert not any(thread.is_alive() for thread in threads)
    if group.report:
        raise Aborted(group.report)
    for failure in failures:
        if not isinstance(failure, Aborted):
            raise failure
    return [results[each] for each in range(size)]
