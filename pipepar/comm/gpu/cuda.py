"""The operations of a GPU that channels use: CUDA streams, events, memory and copies.

Only `CudaGpu`'s constructor and `wait_for_event` wait for the device. Events order operations on
different CUDA streams, so a host can run ahead of its GPU.

The protocols are the part of torch's interface that channels need. Tests implement them with a
simulated GPU that checks the order of memory accesses.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import torch

from pipepar.errors import PipeparError

# Seconds between two queries of an event, short compared with the time of a micro-batch.
_POLL_SECONDS: Final = 50e-6


class Event(Protocol):
    """A point on a CUDA stream; see `torch.cuda.Event`."""

    @property
    def cuda_event(self) -> int:
        """The CUDA handle; 0 before the event is recorded."""

    def record(self, stream: Any) -> None:
        """Mark the current end of a stream's queue."""

    def query(self) -> bool:
        """Return whether the event has completed; True if it was never recorded."""

    def elapsed_time(self, end_event: Any) -> float:
        """Return the milliseconds to a later event; both must be timed and completed."""


class Stream(Protocol):
    """A CUDA stream; see `torch.cuda.Stream`."""

    @property
    def cuda_stream(self) -> int:
        """The CUDA handle."""

    def wait_event(self, event: Any) -> None:
        """Delay later work of this stream until the event, as last recorded, has completed.

        Does not block the host.
        """


class Gpu(Protocol):
    """The GPU of one rank."""

    @property
    def device(self) -> torch.device:
        """The device, such as cuda:1."""

    @property
    def compute(self) -> Stream:
        """The CUDA stream of the stage; `empty` allocates memory for it."""

    @property
    def event_query(self) -> int:
        """Address of a function that queries an event; see `Engine.lane`."""

    @property
    def entry(self) -> tuple[int, int]:
        """Address of a function, and its argument, which make the GPU's CUDA context current.

        The engine's thread calls the function before it queries events; see `Engine.enter`.
        """

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is in this GPU's memory."""

    def stream(self) -> Stream:
        """Create a CUDA stream that runs concurrently with `compute`."""

    def event(self, timed: bool = False) -> Event:
        """Create an event; `Event.elapsed_time` needs timed ones."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """Allocate device memory, uint8 [nbytes].

        Memory freed on the host is reused at once. Only uses on `compute` are ordered: another
        stream must first wait for an event on `compute`, and `compute` must wait for the other
        stream before the memory is freed.
        """

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Allocate pinned host memory, uint8 [nbytes].

        Freed memory is not reused before the copies from and to it are done.
        """

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        """Copy on a stream, between tensors of the same shape and dtype; host memory is pinned.

        Both must live until the copy is done. Memory from `empty` and `pinned` may be freed
        earlier, by the rules given there.
        """

    def range(self, name: str) -> AbstractContextManager[None]:
        """Label the body as a named range for profilers."""


class CudaGpu:
    """A real GPU, used through torch; see `Gpu`.

    Args:
        device: the device, such as cuda:1; becomes the current device of the calling thread. torch
            must be built with CUDA.

    Raises:
        RuntimeError: the device does not exist.
        PipeparError: the driver is missing.
    """

    def __init__(self, device: torch.device) -> None:
        driver = _driver()
        torch.cuda.set_device(device)
        self.device = device
        self.compute: Stream = torch.cuda.current_stream(device)
        torch.cuda.synchronize(device)  # creates the context
        # Functions of the driver, because in a thread without a context, those of the runtime
        # would create one on the first GPU.
        self.event_query = _address(driver.cuEventQuery)
        self.entry = (_address(driver.cuCtxSetCurrent), _current_context(driver))

    def holds(self, tensor: torch.Tensor) -> bool:
        """See `Gpu.holds`."""
        return tensor.device == self.device

    def stream(self) -> Stream:
        """See `Gpu.stream`; its kernels have priority over those of `compute`."""
        return torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]

    def event(self, timed: bool = False) -> Event:
        """See `Gpu.event`."""
        return torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]

    def empty(self, nbytes: int) -> torch.Tensor:
        """See `Gpu.empty`."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See `Gpu.pinned`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        """See `Gpu.copy`."""
        if stream is self.compute:
            target.copy_(source, non_blocking=True)
            return
        with torch.cuda.stream(stream):  # type: ignore[arg-type]
            target.copy_(source, non_blocking=True)

    def range(self, name: str) -> AbstractContextManager[None]:
        """See `Gpu.range`; an NVTX range."""
        return torch.cuda.nvtx.range(name)


def wait_for_event(event: Event) -> None:
    """Wait on the host until an event has completed, by polling."""
    while not event.query():
        time.sleep(_POLL_SECONDS)


def _driver() -> ctypes.CDLL:
    """Return the library of NVIDIA's driver.

    Raises:
        PipeparError: the library is missing.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise PipeparError(
            f"NVIDIA's driver is missing ({error}): install it, or run with --device cpu"
        ) from error


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _current_context(driver: ctypes.CDLL) -> int:
    context = ctypes.c_void_p()
    driver.cuCtxGetCurrent(ctypes.byref(context))
    return context.value or 0
