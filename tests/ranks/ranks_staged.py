"""The sending end from a GPU to a host, with a simulated GPU that copies late."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.channels.memory import core
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint
from pipepar.comm.channels.mpi_receiver import MpiReceiver
from pipepar.comm.gpu.staged import StagedSender
from pipepar.comm.world import World
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, TensorSpec, Value
from tests.helpers.gpu.gates import QUERY, Gate
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi(min_size=2), on_ranks(2)]


class LateStream:
    """A CUDA stream as a thread that runs its operations in order."""

    def __init__(self) -> None:
        self.cuda_stream = 0
        self.pool = ThreadPoolExecutor(1)

    def wait_event(self, event: Any) -> None:
        self.pool.submit(event.completed.wait)


class LateEvent:
    """An event with a gate, which opens when the stream reaches the last record of the event."""

    def __init__(self) -> None:
        self.completed = threading.Event()
        self.completed.set()
        self._gate = Gate()

    @property
    def cuda_event(self) -> int:
        return self._gate.handle

    def record(self, stream: LateStream) -> None:
        self.completed = completed = threading.Event()
        self._gate.close()
        stream.pool.submit(self._complete, completed)

    def query(self) -> bool:
        return self.completed.is_set()

    def elapsed_time(self, end_event: Any) -> float:
        raise NotImplementedError

    def _complete(self, completed: threading.Event) -> None:
        self._gate.open()
        completed.set()


class LateGpu:
    """A `Gpu` whose copies take a random time, up to twice `seconds`; new memory is not zero."""

    def __init__(self, seconds: float) -> None:
        self.device = torch.device("cpu")
        self.event_query = QUERY
        self.entry = (0, 0)
        self._seconds = seconds
        self._streams: list[LateStream] = []
        self.compute = self.stream()

    def stream(self) -> LateStream:
        self._streams.append(LateStream())
        return self._streams[-1]

    def event(self, timed: bool = False) -> LateEvent:
        return LateEvent()

    def empty(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 0xAA, dtype=torch.uint8)

    pinned = empty

    def holds(self, tensor: torch.Tensor) -> bool:
        """All tensors are in host memory; those of int64 represent tensors on the host."""
        return tensor.dtype != torch.int64

    def range(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        def late() -> None:
            time.sleep(random.uniform(0, 2 * self._seconds))
            target.copy_(source)

        assert target.shape == source.shape
        assert target.dtype == source.dtype
        stream.pool.submit(late)

    def close(self) -> None:
        for stream in self._streams:
            stream.pool.shutdown()


@contextmanager
def ends(
    world: World, depth: int = 3, seconds: float = 1e-3
) -> Iterator[tuple[MpiReceiver | None, StagedSender | None]]:
    """Connect a channel from a GPU of rank 0 to rank 1; yield this rank's ends, None for others."""
    comm, gpu = MPI.COMM_WORLD.Dup(), LateGpu(seconds)
    endpoint, engine = MpiEndpoint(comm, 1 - world.rank, 0, depth), world._start_engine()
    sender = StagedSender(endpoint, engine, gpu) if world.rank == 0 else None
    receiver = MpiReceiver(endpoint, engine) if world.rank == 1 else None
    yield receiver, sender
    for end in (sender, receiver):
        if end is not None:
            end.close()
    gpu.close()
    comm.Barrier()
    comm.Free()


def check(
    world: World, values: Sequence[tuple[Value, ...]], depth: int = 3, seconds: float = 1e-3
) -> None:
    """Send values from rank 0 to rank 1, and check that they arrive with the same strides."""
    with ends(world, depth, seconds) as (receiver, sender):
        if sender is not None:
            for index, each in enumerate(values):
                sender.send(MicroBatch(index, each))
            sender.end()
        if receiver is not None:
            found = list(receiver.receive())
            assert [microbatch.index for microbatch in found] == list(range(len(values)))
            for microbatch, sent in zip(found, values, strict=True):
                assert len(microbatch.values) == len(sent)
                for one, other in zip(microbatch.values, sent, strict=True):
                    assert_same(one, other)


def assert_same(found: Value, sent: Value) -> None:
    if not isinstance(sent, torch.Tensor):
        assert found == sent
        return
    sent = sent.resolve_conj().resolve_neg()
    assert isinstance(found, torch.Tensor)
    assert TensorSpec.of(found) == TensorSpec.of(sent)
    assert torch.equal(core(found), core(sent))


LAYOUTS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x,
    lambda x: x.t(),
    lambda x: x[3:],
    lambda x: x[:, ::2],
    lambda x: x[3:, 1:4],
    lambda x: x[:, :1].expand(-1, 7),
    lambda x: x[::2, ::3][:, None, :].expand(-1, 4, -1),
    lambda x: x[0, 0],
    lambda x: x[3, 5],
    lambda x: x[:0],
    lambda x: x[10:, 3:],
    lambda x: x.flatten().unfold(0, 5, 2),
    lambda x: torch.complex(x, -x).conj(),
    lambda x: torch.complex(x, -x).conj().imag,
    lambda x: x.bfloat16(),
    lambda x: x.half()[:, ::3],
    lambda x: x > 0,
    lambda x: (x > 0)[:, 1::2],
]


def test_layouts(world: World) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(10, 12)
    each = [(make(tensor),) for make in LAYOUTS]
    check(world, [*each, tuple(make(tensor) for make in LAYOUTS), *each])


def test_tensors_of_host_and_gpu_and_other_values(world: World) -> None:
    host, resident = torch.arange(1000), torch.randn(30, 40)
    check(
        world,
        [
            (host, resident, None, host[::2], resident[:, ::2], 1.5, "text"),
            (host[:10],),
            (None,),
            (),
            (resident, host),
        ],
    )


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_varying_shapes(world: World, depth: int, seconds: float) -> None:
    generator = torch.Generator().manual_seed(7)

    def number(high: int) -> int:
        return int(torch.randint(0, high, (1,), generator=generator))

    check(
        world,
        [
            tuple(
                torch.randn(number(8), number(40 if index % 50 else 4000), generator=generator)
                for _ in range(1 + number(3))
            )
            for index in range(120)
        ],
        depth,
        seconds,
    )


def test_sending_does_not_wait_for_the_gpu(world: World) -> None:
    with ends(world, depth=4, seconds=0.2) as (receiver, sender):
        if sender is not None:
            begin = time.monotonic()
            for index in range(3):
                sender.send(MicroBatch(index, (torch.full((100_000,), float(index)),)))
            sender.end()
            assert time.monotonic() - begin < 0.1
        if receiver is not None:
            for index, found in enumerate(receiver.receive()):
                assert_same(found.values[0], torch.full((100_000,), float(index)))


def test_abort_does_not_wait_for_the_gpu(world: World) -> None:
    comm, gpu = MPI.COMM_WORLD.Dup(), LateGpu(0.5)
    if world.rank == 0:
        sender = StagedSender(MpiEndpoint(comm, 1, 0, 2), world._start_engine(), gpu)
        sender.send(MicroBatch(0, (torch.zeros(1000),)))
        begin = time.monotonic()
        sender.abort()
        assert time.monotonic() - begin < 0.1
        with pytest.raises(WireError, match="closed"):
            sender.send(MicroBatch(1, ()))
    gpu.close()
    comm.Barrier()
    comm.Free()
