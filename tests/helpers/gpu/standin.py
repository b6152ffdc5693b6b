"""A stand-in for a GPU: its tensors have their own class, and its work is done at once.

It is for whole pipelines on real ranks, to check on which device each tensor is. The order of
asynchronous work is checked with tests/helpers/simulated.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mpi4py import MPI

from pipepar.comm.gpu.communicators import Abort, Pair
from pipepar.comm.gpu.cuda import Event, Gpu, Stream
from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext
from pipepar.host.devices import Devices
from tests.helpers.gpu.gates import QUERY


class OnGpu(torch.Tensor):
    """A tensor on the GPU; results of operations on it are on the GPU, too."""


class Completed:
    """A stream and an event whose work is always done."""

    cuda_stream = 0
    cuda_event = 0

    def __init__(self) -> None:
        self._seconds = 0.0

    def wait_event(self, event: Any) -> None:
        pass

    def record(self, stream: Any) -> None:
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: Any) -> float:
        return float(end_event._seconds - self._seconds) * 1e3


class StandIn:
    """See `Gpu`."""

    device = torch.device("cpu")
    event_query = QUERY
    entry = (0, 0)

    def __init__(self) -> None:
        self.compute: Stream = Completed()
        self.ranges: list[str] = []
        self.copied = 0

    def holds(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, OnGpu)

    def stream(self) -> Stream:
        return Completed()

    def event(self, timed: bool = False) -> Event:
        return Completed()

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0xA5, dtype=torch.uint8).as_subclass(OnGpu)

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0x5A, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        self.copied += source.nbytes
        target.copy_(source)

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        self.ranges.append(name)
        yield


class OverMpi:
    """A `P2PTransport` over MPI; a receive blocks until the bytes have arrived."""

    def __init__(self, comm: MPI.Intracomm, peer: int) -> None:
        self._comm = comm
        self._peer = peer
        self._under_way: list[tuple[MPI.Request, bytes]] = []

    def send(self, address: int, nbytes: int, stream: int) -> None:
        data = MPI.buffer.fromaddress(address, nbytes).tobytes()
        self._under_way.append((self._comm.Isend(data, self._peer), data))

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        self._comm.Recv(MPI.buffer.fromaddress(address, nbytes), self._peer)

    def problem(self) -> str:
        return ""

    def close(self) -> None:
        MPI.Request.Waitall([request for request, _ in self._under_way])
        self._under_way.clear()

    def abort(self) -> None:
        pass


class CommunicatorsOverMpi(dict[int, OverMpi]):
    """Takes the place of `Communicators`: an MPI communicator for each channel."""

    @classmethod
    def start(
        cls, world: World, pairs: Mapping[int, Pair], gpu: Gpu | None, abort: Abort
    ) -> Mapping[int, OverMpi]:
        started = cls()
        for channel, pair in pairs.items():
            comm = MPI.COMM_WORLD.Dup()
            if world.rank in pair:
                assert gpu is not None
                started[channel] = OverMpi(comm, pair[1 - pair.index(world.rank)])
        return started

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


def context_for(world: World, kinds: Sequence[str]) -> DeviceContext:
    """Return the device context of this rank; `kinds`, "cpu" or "cuda", repeat over the ranks."""
    by_rank = tuple(kinds[rank % len(kinds)] for rank in range(world.size))
    gpu = StandIn() if by_rank[world.rank] == "cuda" else None
    return DeviceContext(Devices(by_rank, torch.device("cpu"), "a stand-in", 1, ""), gpu)
