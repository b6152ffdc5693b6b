"""A GPU as channels see it: CUDA streams, events, memory and copies.

Nothing in here waits for the device. What must happen before what is said by events, each recorded
on one stream and waited for by another, so that a host may run ahead of its device.

The contract is torch's own, as narrow as channels need it, so that tests can put a GPU in its place
that checks the order of things.
"""

from __future__ import annotations

import ctypes
import time
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import torch

from pipepar.errors import PipeparError

# Between two looks at an event; a wait is for a whole micro-batch, so this costs it nothing.
_LOOK_SECONDS: Final = 50e-6


class Event(Protocol):
    """A point on a CUDA stream; see `torch.cuda.Event`."""

    @property
    def cuda_event(self) -> int:
        """Its handle; there is none before it has been recorded."""

    def record(self, stream: Any) -> None:
        """Be the point that the stream has been told to come to so far."""

    def query(self) -> bool:
        """Whether the stream has come there; True where it was never recorded."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from here to a later event, both timed and both come to."""


class Stream(Protocol):
    """A CUDA stream; see `torch.cuda.Stream`."""

    @property
    def cuda_stream(self) -> int:
        """Its handle."""

    def wait_event(self, event: Any) -> None:
        """Go on only after the event, as last recorded; the host goes on at once."""


class Gpu(Protocol):
    """One rank's GPU."""

    @property
    def device(self) -> torch.device:
        """Which one, such as cuda:1."""

    @property
    def compute(self) -> Stream:
        """The CUDA stream that the stage computes on, and that `empty` belongs to."""

    @property
    def event_query(self) -> int:
        """Address of the function that tells whether an event has come; see `Engine.lane`."""

    @property
    def entry(self) -> tuple[int, int]:
        """Function and argument that make its CUDA context current in the calling thread.

        The engine's thread calls it before it queries events; see `Engine.enter`.
        """

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in its memory."""

    def stream(self) -> Stream:
        """Another CUDA stream, for what is to overlap with computing."""

    def event(self, timed: bool = False) -> Event:
        """An event that has not been recorded yet."""

    def empty(self, nbytes: int) -> torch.Tensor:
        """Memory of the GPU, uint8 [nbytes].

        What is freed on the host may be given out again at once: it is what `compute` did with it
        last that comes before what `compute` does with it next. Another stream has to wait for an
        event on `compute`, and `compute` for the other stream before the memory is let go.
        """

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Page-locked memory of the host, uint8 [nbytes].

        It is not given out again before copies from or to it are done.
        """

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        """Copy on a stream, between tensors of one shape and dtype; memory of the host is pinned.
        Both must live until the copy is done, or be of `empty` or `pinned`."""

    def range(self, name: str) -> AbstractContextManager[None]:
        """Show what the host does inside under that name in a profiler."""


class CudaGpu:
    """A GPU that torch drives.

    Args:
        device: which one, such as cuda:1; it becomes the current device of this thread.

    Raises:
        RuntimeError: torch has no CUDA, or there is no such device.
        PipeparError: the driver is not to be found.
    """

    def __init__(self, device: torch.device) -> None:
        driver = _driver()
        torch.cuda.set_device(device)
        self.device = device
        self.compute: Stream = torch.cuda.current_stream(device)
        torch.cuda.synchronize(device)  # now it has a context
        # Not the runtime's functions: a thread without a context would make one, on the first GPU.
        self.event_query = _address(driver.cuEventQuery)
        self.entry = (_address(driver.cuCtxSetCurrent), _current_context(driver))

    def holds(self, tensor: torch.Tensor) -> bool:
        """See `Gpu.holds`."""
        return tensor.device == self.device

    def stream(self) -> Stream:
        """See `Gpu.stream`; what it does comes before what waits for a place on `compute`."""
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
    """Wait on the host until an event has come, without a call that synchronises."""
    while not event.query():
        time.sleep(_LOOK_SECONDS)


def _driver() -> ctypes.CDLL:
    """The driver's own functions: there is one driver in a process, and its names never change.

    Raises:
        PipeparError: there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise PipeparError(
            f"NVIDIA's driver is not there ({error}): install it, or run with --device cpu"
        ) from error


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _current_context(driver: ctypes.CDLL) -> int:
    context = ctypes.c_void_p()
    driver.cuCtxGetCurrent(ctypes.byref(context))
    return context.value or 0
