"""Communicators between real ranks; each is a meeting of two, as NCCL's are, but over MPI."""

import threading
import time
from itertools import combinations
from typing import ClassVar

import pytest
from mpi4py import MPI

from pipepar.comm import communicators
from pipepar.comm.communicators import Communicators, Pair
from pipepar.comm.world import World
from pipepar.errors import PeerError, WireError
from tests.helpers.gpu.standin import StandIn

pytestmark = pytest.mark.mpi

COMM = MPI.COMM_WORLD


class Meeting:
    """Two ranks meet to make a communicator, to use it first, and to close it."""

    made: ClassVar[list[str]] = []
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
        self._meet(b"used")

    receive = send

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
    started = Communicators.start(world, every, StandIn())
    assert sorted(started) == [pair for pair in every if world.rank in pair]
    assert Meeting.made == [
        f"edge rank {first} -> rank {second}"
        for first, second in sorted(every, key=lambda pair: (pair[0] % 2, pair))
        if world.rank in (first, second)
    ]
    for pair in sorted(started, key=lambda pair: (pair[0] - world.rank) % world.size):
        started[pair].close()  # channels are closed in an order of their own
        started[pair].close()
    started.close()


def test_a_missing_library_is_told_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise WireError("no libnccl.so.2 is loaded")

    monkeypatch.setattr(Library, "load", load)
    kind = WireError if world.rank == 0 else PeerError
    with pytest.raises(kind, match="no libnccl"):
        Communicators.start(world, [(0, rank) for rank in range(world.size)], StandIn())


@pytest.mark.mpi(min_size=2)
def test_what_breaks_later_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = list[threading.ExceptHookArgs]()
    told = threading.Event()

    def hook(args: threading.ExceptHookArgs) -> None:
        raised.append(args)
        told.set()

    monkeypatch.setattr(threading, "excepthook", hook)
    started = Communicators.start(world, [(0, 1)], StandIn())
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
