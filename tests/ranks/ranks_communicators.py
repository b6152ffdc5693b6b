"""Communicators between real ranks, with MPI in place of NCCL."""

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


class FakeCommunicator:
    """A communicator of two ranks; its creation, first use and closing wait for the other rank."""

    calls: ClassVar[list[str]] = []
    """Each communicator that was created, and its uses, in order."""
    error: ClassVar[str] = ""

    def __init__(self, peer: int, unique_id: bytes, what: str) -> None:
        self._peer = peer
        self.what = what
        assert self._exchange(unique_id) == unique_id

    @classmethod
    def start(
        cls, nccl: object, unique_id: bytes, rank: int, size: int, what: str
    ) -> "FakeCommunicator":
        assert size == 2
        pair = [int(word) for word in what.replace("edge rank ", "").split(" -> rank ")]
        assert pair[rank] == COMM.rank
        cls.calls.append(what)
        return cls(pair[1 - rank], unique_id, what)

    def send(self, address: int, nbytes: int, stream: int) -> None:
        self.calls.append(f"send {nbytes}")
        self._exchange(b"used")

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        self.calls.append(f"receive {nbytes}")
        self._exchange(b"used")

    def problem(self) -> str:
        return self.error

    def close(self) -> None:
        self._exchange(b"close")

    def abort(self) -> None:
        time.sleep(30)

    def _exchange(self, data: bytes) -> bytes:
        received: bytes = COMM.sendrecv(data, self._peer, source=self._peer)
        return received


class FakeNccl:
    """A library whose unique ids contain the rank that made them."""

    count = 0

    @classmethod
    def load(cls) -> "FakeNccl":
        return cls()

    def unique_id(self) -> bytes:
        self.count += 1
        return bytes([COMM.rank, self.count])


@pytest.fixture(autouse=True)
def fake_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communicators, "Nccl", FakeNccl)
    monkeypatch.setattr(communicators, "Communicator", FakeCommunicator)
    monkeypatch.setattr(FakeCommunicator, "calls", [])
    monkeypatch.setattr(FakeCommunicator, "error", "")


def test_all_ranks_create_and_close_communicators_in_one_order(world: World) -> None:
    """Each step waits for the other rank, so ranks with different orders would hang."""
    every: list[Pair] = list(combinations(range(world.size), 2))
    pairs = dict(enumerate(every))
    started = Communicators.start(world, pairs, StandIn(), world.abort)
    assert sorted(started) == [at for at, pair in pairs.items() if world.rank in pair]
    mine = [
        (f"edge rank {first} -> rank {second}", "send 1" if world.rank == first else "receive 1")
        for first, second in sorted(every, key=lambda pair: (pair[0] % 2, pair))
        if world.rank in (first, second)
    ]
    assert FakeCommunicator.calls == [call for each in mine for call in each]
    for at in sorted(started, key=lambda at: (pairs[at][0] - world.rank) % world.size):
        started[at].close()  # each rank closes channels in another order
        started[at].close()
    started.close()


def test_a_missing_library_is_reported_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise WireError("no libnccl.so.2 is loaded")

    monkeypatch.setattr(FakeNccl, "load", load)
    kind = WireError if world.rank == 0 else PeerError
    pairs = {rank: (0, rank) for rank in range(world.size)}
    with pytest.raises(kind, match="no libnccl"):
        Communicators.start(world, pairs, StandIn(), world.abort)


@pytest.mark.mpi(min_size=2)
def test_a_later_error_of_nccl_is_raised_in_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = list[threading.ExceptHookArgs]()
    reported = threading.Event()

    def hook(args: threading.ExceptHookArgs) -> None:
        raised.append(args)
        reported.set()

    monkeypatch.setattr(threading, "excepthook", hook)
    started = Communicators.start(world, {0: (0, 1)}, StandIn(), world.abort)
    monkeypatch.setattr(FakeCommunicator, "error", "unhandled system error")
    if world.rank < 2:
        assert reported.wait(5)
        assert raised[0].exc_type is WireError
        message = str(raised[0].exc_value)
        assert message.startswith("edge rank 0 -> rank 1 broke: unhandled system error; look for")
        begin = time.perf_counter()
        started.abort()  # hangs, as that of NCCL may
        assert time.perf_counter() - begin < 3
    assert len(started) == (1 if world.rank < 2 else 0)


@pytest.mark.mpi(min_size=2)
def test_a_peer_that_does_not_connect_ends_the_job_after_a_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`abort` does not end the job here, and the peer connects after it."""
    reports = list[str]()

    def abort(report: str) -> None:
        reports.append(report)
        COMM.send(None, 1, tag=7)

    monkeypatch.setattr(communicators, "_PATIENCE", 0.2 if world.rank == 0 else 60.0)
    monkeypatch.setattr(world, "abort", abort)
    if world.rank == 1:
        start = FakeCommunicator.start

        def start_late(*args: Any) -> FakeCommunicator:
            COMM.recv(source=0, tag=7)
            return start(*args)

        monkeypatch.setattr(FakeCommunicator, "start", start_late)
    started = Communicators.start(world, {0: (0, 1)}, StandIn(), world.abort)
    if world.rank == 0:
        (report,) = reports
        assert report.startswith(f"error: rank 0 on {world.host} could not connect its GPU to that")
        assert f" of rank 1 on {world.hosts[1]} (edge rank 0 -> rank 1) within 0 s; see" in report
        assert "NCCL_SOCKET_IFNAME" in report
    for transport in started.values():
        transport.close()


@pytest.mark.mpi(min_size=2)
def test_errors_after_close_are_not_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    raised = list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", raised.append)
    monkeypatch.setattr(communicators, "_LOOK_SECONDS", 0.01)
    started = Communicators.start(world, {0: (0, 1)}, StandIn(), world.abort)
    monitors = [thread for thread in threading.enumerate() if thread.name == "pipepar-nccl"]
    assert len(monitors) == (1 if world.rank < 2 else 0)
    for transport in started.values():
        transport.close()
        transport.close()
    for thread in monitors:
        thread.join(10)
        assert not thread.is_alive()
    monkeypatch.setattr(FakeCommunicator, "error", "the peer has ended")
    assert not raised
