"""Communicators between real ranks; each is a meeting of two, as NCCL's are, but over MPI."""

import threading
import time
from itertools import combinations
from typing import Any, ClassVar

import pytest
from mpi4py import MPI

from pipepar.comm.gpu import communicators
from pipepar.comm.gpu.communicators import Communicators, Pair
from pipepar.comm.world import World
from pipepar.errors import PeerError, WireError
from tests.helpers.gpu.standin import StandIn

pytestmark = pytest.mark.mpi

COMM = MPI.COMM_WORLD


class Meeting:
    """Two ranks meet to make a communicator, to use it first, and to close it."""

    made: ClassVar[list[str]] = []
    """What was started, and what it was used for, in order."""
    trouble: ClassVar[str] = ""

    def __init__(self, peer: int, unique_id: bytes, what: str) -> None:
        self._peer = peer
        self.what = what
        assert self._meet(unique_id) == unique_id

    @classmethod
    def start(cls, nccl: object, unique_id: bytes, rank: int, size: int, what: str) -> "Meeting":
        assert size == 2
        pair = [int(word) for word in what.replace("edge rank ", "").split(" -> rank ")]
        assert pair[rank] == COMM.rank
        cls.made.append(what)
        return cls(pair[1 - rank], unique_id, what)

    def send(self, address: int, nbytes: int, stream: int) -> None:
        self.made.append(f"send {nbytes}")
        self._meet(b"used")

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        self.made.append(f"receive {nbytes}")
        self._meet(b"used")

    def problem(self) -> str:
        return self.trouble

    def close(self) -> None:
        self._meet(b"close")

    def abort(self) -> None:
        time.sleep(30)

    def _meet(self, words: bytes) -> bytes:
        heard: bytes = COMM.sendrecv(words, self._peer, source=self._peer)
        return heard


class Library:
    """Makes ids that tell who made them."""

    count = 0

    @classmethod
    def load(cls) -> "Library":
        return cls()

    def unique_id(self) -> bytes:
        self.count += 1
        return bytes([COMM.rank, self.count])


@pytest.fixture(autouse=True)
def meetings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicators, "Nccl", Library)
    monkeypatch.setattr(communicators, "Communicator", Meeting)
    monkeypatch.setattr(Meeting, "made", [])
    monkeypatch.setattr(Meeting, "trouble", "")


def test_all_meet_and_part_in_one_order(world: World) -> None:
    """Each meeting waits for the other rank: any other order would hang."""
    every: list[Pair] = list(combinations(range(world.size), 2))
    pairs = dict(enumerate(every))
    started = Communicators.start(world, pairs, StandIn(), world.abort)
    assert sorted(started) == [at for at, pair in pairs.items() if world.rank in pair]
    mine = [
        (f"edge rank {first} -> rank {second}", "send 1" if world.rank == first else "receive 1")
        for first, second in sorted(every, key=lambda pair: (pair[0] % 2, pair))
        if world.rank in (first, second)
    ]
    assert Meeting.made == [word for each in mine for word in each]  # each is used once at once
    for at in sorted(started, key=lambda at: (pairs[at][0] - world.rank) % world.size):
        started[at].close()  # channels are closed in an order of their own
        started[at].close()
    started.close()


def test_a_missing_library_is_told_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise WireError("no libnccl.so.2 is loaded")

    monkeypatch.setattr(Library, "load", load)
    kind = WireError if world.rank == 0 else PeerError
    pairs = {rank: (0, rank) for rank in range(world.size)}
    with pytest.raises(kind, match="no libnccl"):
        Communicators.start(world, pairs, StandIn(), world.abort)


@pytest.mark.mpi(min_size=2)
def test_what_breaks_later_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = list[threading.ExceptHookArgs]()
    told = threading.Event()

    def hook(args: threading.ExceptHookArgs) -> None:
        raised.append(args)
        told.set()

    monkeypatch.setattr(threading, "excepthook", hook)
    started = Communicators.start(world, {0: (0, 1)}, StandIn(), world.abort)
    monkeypatch.setattr(Meeting, "trouble", "unhandled system error")
    if world.rank < 2:
        assert told.wait(5)
        assert raised[0].exc_type is WireError
        words = str(raised[0].exc_value)
        assert words.startswith("edge rank 0 -> rank 1 broke: unhandled system error; look for")
        begin = time.perf_counter()
        started.abort()  # hangs, as NCCL's may
        assert time.perf_counter() - begin < 3
    assert len(started) == (1 if world.rank < 2 else 0)


@pytest.mark.mpi(min_size=2)
def test_a_peer_that_does_not_come_is_waited_for_so_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job would end then; here the waiting rank gets the error, and the peer comes late."""
    ended = list[str]()

    def abort(report: str) -> None:
        ended.append(report)
        COMM.send(None, 1, tag=7)

    monkeypatch.setattr(communicators, "_PATIENCE", 0.2 if world.rank == 0 else 60.0)
    monkeypatch.setattr(world, "abort", abort)
    if world.rank == 1:
        start = Meeting.start

        def start_late(*given: Any) -> Meeting:
            COMM.recv(source=0, tag=7)
            return start(*given)

        monkeypatch.setattr(Meeting, "start", start_late)
    started = Communicators.start(world, {0: (0, 1)}, StandIn(), world.abort)
    if world.rank == 0:
        (report,) = ended
        assert report.startswith(f"error: rank 0 on {world.host} could not connect its GPU to that")
        assert f" of rank 1 on {world.hosts[1]} (edge rank 0 -> rank 1) within 0 s; see" in report
        assert "NCCL_SOCKET_IFNAME" in report
    for held in started.values():
        held.close()


@pytest.mark.mpi(min_size=2)
def test_who_closed_is_told_of_no_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(communicators, "_LOOK_SECONDS", 0.01)
    started = Communicators.start(world, {0: (0, 1)}, StandIn(), world.abort)
    watching = [thread for thread in threading.enumerate() if thread.name == "pipepar-nccl"]
    assert len(watching) == (1 if world.rank < 2 else 0)
    for held in started.values():
        held.close()
        held.close()
    for thread in watching:
        thread.join(10)
        assert not thread.is_alive()
    monkeypatch.setattr(Meeting, "trouble", "the peer is gone, as it may")
    assert not raised
