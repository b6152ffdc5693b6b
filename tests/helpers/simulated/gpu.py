"""A simulated GPU: a `Gpu` on CPU tensors that executes its work late and checks its order.

As on a GPU, memory freed in Python is allocated again while operations on it are pending. So a
wrong order has two effects: the checker reports the two operations, and values change.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from tests.helpers.simulated.order import Region
from tests.helpers.simulated.pool import Pool, alias
from tests.helpers.simulated.resident import Resident
from tests.helpers.simulated.scheduler import Scheduler
from tests.helpers.simulated.streams import Operation, SimulatedEvent, SimulatedStream

_NOT_READY: Final = 600  # cudaErrorNotReady


class SimulatedGpu:
    """See `Gpu`.

    Args:
        scheduler: shared by the GPUs of a test.
        name: the name in messages.
    """

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler = scheduler
        self.name = name
        self.device = torch.device("cpu")
        self._memory = Pool(name, reuses=True)
        self._pinned = Pool(f"{name}'s pinned memory", reuses=False)
        self._streams: dict[int, SimulatedStream] = {}
        self._events: dict[int, SimulatedEvent] = {}
        self._handles = itertools.count(0x9000, 16)
        self._kind = type("Resident", (Resident,), {"gpu": self})
        # Kept alive, since a progress engine calls it by its address.
        self._query = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(self._query_event)
        self.event_query = ctypes.cast(self._query, ctypes.c_void_p).value or 0
        self.entry = (0, 0)
        self.compute = self._stream("compute")

    def stream(self) -> SimulatedStream:
        return self._stream(f"stream {len(self._streams)}")

    def event(self, timed: bool = False) -> SimulatedEvent:
        handle = next(self._handles)
        self._events[handle] = SimulatedEvent(self.scheduler, handle, timed)
        return self._events[handle]

    def holds(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, self._kind) or self.has_bytes(tensor)

    def has_bytes(self, tensor: torch.Tensor) -> bool:
        """Return whether the bytes of a tensor are in this GPU's memory; False for no bytes."""
        with self.scheduler.lock:
            return self._memory.holds(tensor)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Return whether the bytes of a tensor are in the pinned memory; False for no bytes."""
        with self.scheduler.lock:
            return self._pinned.holds(tensor)

    def range(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def empty(self, nbytes: int) -> torch.Tensor:
        with self.scheduler.lock:
            return self._memory.allocate(nbytes).as_subclass(self._kind)

    def pinned(self, nbytes: int) -> torch.Tensor:
        with self.scheduler.lock:
            return self._pinned.allocate(nbytes)

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(
                f"copy from {source.dtype} {list(source.shape)} to "
                f"{target.dtype} {list(target.shape)}"
            )
        contiguous = target.is_contiguous() and source.is_contiguous()
        if not contiguous and self.has_bytes(target) != self.has_bytes(source):
            raise ValueError("torch would make the tensor contiguous first, and block the host")
        self.launch(
            stream, lambda old, new: new.copy_(old), reads=[source], writes=[target], label="copy"
        )

    def launch(
        self,
        stream: Any,
        function: Callable[..., object],
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
        label: str = "kernel",
    ) -> None:
        """Enqueue a kernel on a stream.

        Args:
            stream: a stream of this GPU.
            function: called later with aliases of the tensors in `reads` and `writes`. It must not
                refer to these tensors itself, which would keep their memory allocated.
            reads: tensors in device or pinned memory that the kernel reads.
            writes: tensors in device or pinned memory that the kernel writes.
            label: the name in messages.
        """
        read, written = [self._region(t) for t in reads], [self._region(t) for t in writes]
        tensors = [
            alias(tensor, region)
            for tensor, region in zip([*reads, *writes], [*read, *written], strict=True)
        ]
        self.scheduler.enqueue(
            Operation(
                self.stream_of(stream.cuda_stream),
                label,
                lambda: function(*tensors),
                [region for region in read if region],
                [region for region in written if region],
            )
        )

    def touch(
        self, reads: Sequence[torch.Tensor] = (), writes: Sequence[torch.Tensor] = ()
    ) -> None:
        """Note that the host reads and writes pinned memory now."""
        with self.scheduler.lock:
            read, written = ([self._pinned.region(t) for t in ts] for ts in (reads, writes))
            self.scheduler.touch([r for r in read if r], [r for r in written if r])

    def stream_of(self, handle: int) -> SimulatedStream:
        """Return the stream with a handle; KeyError if it belongs to another GPU."""
        return self._streams[handle]

    def find(self, address: int, nbytes: int) -> Region | None:
        """Return this GPU's memory at an address; None for 0 bytes."""
        with self.scheduler.lock:
            return self._memory.find(address, nbytes) if nbytes else None

    def _stream(self, name: str) -> SimulatedStream:
        stream = self.scheduler.stream(f"{self.name}'s {name}")
        self._streams[stream.cuda_stream] = stream
        return stream

    def _query_event(self, handle: int) -> int:
        return 0 if self._events[handle].query() else _NOT_READY

    def _region(self, tensor: torch.Tensor) -> Region | None:
        with self.scheduler.lock:
            try:
                return self._memory.region(tensor)
            except LookupError:
                return self._pinned.region(tensor)
