"""`CudaGpu` on a real GPU: memory, copies, and event queries by native threads."""

import ctypes
import threading

import pytest
import torch

from pipepar.comm.gpu.cuda import CudaGpu, wait_for_event

pytestmark = pytest.mark.gpu


def test_device_memory_and_pinned_memory(gpu: CudaGpu) -> None:
    assert gpu.holds(gpu.empty(8))
    assert not gpu.holds(gpu.pinned(8))
    assert gpu.pinned(8).is_pinned()
    assert not torch.empty(8).is_pinned()
    assert gpu.compute.cuda_stream != gpu.stream().cuda_stream


def test_any_thread_can_query_an_event(gpu: CudaGpu) -> None:
    """The thread of the progress engine has no CUDA context, and queries the driver."""
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    enter, query = function(gpu.entry[0]), function(gpu.event_query)
    event, results = gpu.event(), []

    def query_event() -> None:
        results.append((enter(gpu.entry[1]), query(event.cuda_event)))

    torch.cuda._sleep(400_000_000)  # type: ignore[no-untyped-call]
    event.record(gpu.compute)
    for _ in range(2):
        thread = threading.Thread(target=query_event)
        thread.start()
        thread.join()
        wait_for_event(event)
    assert gpu.entry[1]
    assert results == [(0, 600), (0, 0)]  # CUDA_SUCCESS, CUDA_ERROR_NOT_READY


def test_copies_are_ordered_by_their_stream(gpu: CudaGpu) -> None:
    source, there, back = gpu.pinned(1 << 20).fill_(7), gpu.empty(1 << 20), gpu.pinned(1 << 20)
    side, ready, done = gpu.stream(), gpu.event(), gpu.event()
    back.fill_(0)
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    gpu.copy(there, source, gpu.compute)
    ready.record(gpu.compute)
    side.wait_event(ready)
    gpu.copy(back, there, side)
    done.record(side)
    assert not done.query()
    wait_for_event(done)
    assert bool((back == 7).all())
