"""NCCL on one GPU: a rank that sends to itself, ordered by events.

It tests the binding and the order of transfers on their CUDA streams, but not two ranks.
"""

from collections.abc import Iterator

import pytest
import torch

from pipepar.comm.gpu.cuda import CudaGpu, Event, Stream, wait_for_event
from pipepar.comm.gpu.nccl import Communicator, Nccl
from pipepar.errors import WireError

pytestmark = pytest.mark.gpu

MIB = 2**20
DTYPES = [torch.uint8, torch.bool, torch.int64, torch.bfloat16, torch.float64, torch.complex64]


@pytest.fixture
def itself(nccl: Nccl) -> Iterator[Communicator]:
    communicator = Communicator.start(nccl, nccl.unique_id(), 0, 1, "edge rank 0 -> rank 0")
    yield communicator
    communicator.close()


class Crossing:
    """Transfers to the same GPU, with one CUDA stream for sends and one for receives."""

    def __init__(self, gpu: CudaGpu, nccl: Nccl, communicator: Communicator) -> None:
        self.gpu, self.nccl, self.communicator = gpu, nccl, communicator
        self.out: Stream = gpu.stream()
        self.into: Stream = gpu.stream()

    def cross(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Send `source` to `target` after earlier work of `compute` and before its later work."""
        ready: Event = self.gpu.event()
        ready.record(self.gpu.compute)
        self.out.wait_event(ready)
        self.into.wait_event(ready)
        with self.nccl.group():
            self.communicator.send(source.data_ptr(), source.nbytes, self.out.cuda_stream)
            self.communicator.receive(target.data_ptr(), target.nbytes, self.into.cuda_stream)
        for stream in (self.out, self.into):
            done: Event = self.gpu.event()
            done.record(stream)
            self.gpu.compute.wait_event(done)


@pytest.fixture
def crossing(gpu: CudaGpu, nccl: Nccl, itself: Communicator) -> Crossing:
    return Crossing(gpu, nccl, itself)


def noise(gpu: CudaGpu, nbytes: int) -> torch.Tensor:
    return torch.randint(2, (nbytes,), dtype=torch.uint8, device=gpu.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 1000, 4 * MIB // 16])
def test_tensors_arrive_unchanged(
    gpu: CudaGpu, crossing: Crossing, dtype: torch.dtype, count: int
) -> None:
    source = noise(gpu, count * dtype.itemsize).view(dtype)
    target = torch.zeros_like(source)
    crossing.cross(source, target)
    assert torch.equal(target, source)


def test_only_the_target_bytes_are_written(gpu: CudaGpu, crossing: Crossing) -> None:
    # An odd number of bytes at an odd address.
    source = noise(gpu, 3 * MIB) + 1
    target = torch.zeros_like(source)
    begin, end = 7, 2 * MIB + 8
    crossing.cross(source[begin:end], target[begin:end])
    assert torch.equal(target[begin:end], source[begin:end])
    assert not target[:begin].any()
    assert not target[end:].any()


def test_a_transfer_of_zero_bytes(gpu: CudaGpu, crossing: Crossing) -> None:
    nothing = gpu.empty(0)
    crossing.cross(nothing, nothing)
    last = gpu.event()
    last.record(gpu.compute)
    wait_for_event(last)


def test_events_order_transfers(gpu: CudaGpu, crossing: Crossing) -> None:
    """One tensor is overwritten late for each transfer, while the host runs far ahead."""
    source, target = (torch.zeros(8 * MIB, dtype=torch.uint8, device=gpu.device) for _ in range(2))
    sums: list[torch.Tensor] = []
    for value in range(1, 11):
        torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
        source.fill_(value)
        crossing.cross(source, target)
        source.fill_(0)
        sums.append(target.sum(dtype=torch.int64))
        target.fill_(0)
    assert torch.stack(sums).tolist() == [value * 8 * MIB for value in range(1, 11)]


def test_a_communicator_without_error_is_closed(nccl: Nccl) -> None:
    communicator = Communicator.start(nccl, nccl.unique_id(), 0, 1, "edge rank 0 -> rank 0")
    assert communicator.problem() == ""
    communicator.close()
    communicator.close()
    with pytest.raises(WireError, match="closed"):
        communicator.send(0, 0, 0)


def test_abort(gpu: CudaGpu, nccl: Nccl) -> None:
    communicator = Communicator.start(nccl, nccl.unique_id(), 0, 1, "edge rank 0 -> rank 0")
    communicator.abort()
    assert communicator.problem() == ""
    communicator.close()


def test_errors_quote_nccl(gpu: CudaGpu, nccl: Nccl) -> None:
    with pytest.raises(WireError, match="ncclCommInitRankConfig returned 4, invalid argument"):
        Communicator.start(nccl, nccl.unique_id(), 3, 2, "edge rank 0 -> rank 1")
