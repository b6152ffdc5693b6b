"""A GPU for tests: a `Gpu` on CPU tensors, with work that is done late and checked.

Memory let go of in Python is given out again although operations on it are still to come, as on a
GPU. So an order that is wrong shows twice: the checker names the two operations, and values change.
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

_NOT_READY: Final = 600  # CUDA's own


class SimulatedGpu:
    """See `Gpu`.

    Args:
        scheduler: shared by the GPUs of a test.
        name: what it is called in messages.
    """

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler = scheduler
        self.name = name
        self.device = torch.device("cpu")
        self._memory = Pool(name, again=True)
        self._pinned = Pool(f"{name}'s pinned memory", again=False)
        self._streams: dict[int, SimulatedStream] = {}
        self._events: dict[int, SimulatedEvent] = {}
        self._handles = itertools.count(0x9000, 16)
        self._kind = type("Resident", (Resident,), {"gpu": self})
        # The function that a progress engine calls; it lives as long as this does.
        self._query = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(self._has_not_come)
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
        return isinstance(tensor, self._kind) or self.lies(tensor)

    def lies(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's bytes are of this GPU's memory; none are nowhere."""
        with self.scheduler.lock:
            return self._memory.holds(tensor)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's bytes are of this GPU's pinned memory; none are nowhere."""
        with self.scheduler.lock:
            return self._pinned.holds(tensor)

    def range(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def empty(self, nbytes: int) -> torch.Tensor:
        with self.scheduler.lock:
            return self._memory.give(nbytes).as_subclass(self._kind)

    def pinned(self, nbytes: int) -> torch.Tensor:
        with self.scheduler.lock:
            return self._pinned.give(nbytes)

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Any) -> None:
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(
                f"a {source.dtype} {list(source.shape)} is copied to a "
                f"{target.dtype} {list(target.shape)}"
            )
        is_one_piece = target.is_contiguous() and source.is_contiguous()
        if not is_one_piece and self.lies(target) != self.lies(source):
            raise ValueError("torch packs what is not contiguous first, and waits for that")
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
        """Have a stream compute something; returns at once.

        Args:
            stream: one of this GPU's.
            function: called later with the tensors read and those written, over the same bytes; it
                must not know them otherwise, or they would not be let go of.
            reads: tensors of this GPU or its pinned memory.
            writes: the same.
            label: what it is called in messages.
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
        """The host says that it reads and writes pinned memory now."""
        with self.scheduler.lock:
            read, written = ([self._pinned.region(t) for t in ts] for ts in (reads, writes))
            self.scheduler.touch([r for r in read if r], [r for r in written if r])

    def stream_of(self, handle: int) -> SimulatedStream:
        """The stream with a handle; KeyError where it is another GPU's."""
        return self._streams[handle]

    def find(self, address: int, nbytes: int) -> Region | None:
        """This GPU's memory at an address; None where there are no bytes."""
        with self.scheduler.lock:
            return self._memory.find(address, nbytes) if nbytes else None

    def _stream(self, name: str) -> SimulatedStream:
        stream = self.scheduler.stream(f"{self.name}'s {name}")
        self._streams[stream.cuda_stream] = stream
        return stream

    def _has_not_come(self, handle: int) -> int:
        return 0 if self._events[handle].query() else _NOT_READY

    def _region(self, tensor: torch.Tensor) -> Region | None:
        with self.scheduler.lock:
            try:
                return self._memory.region(tensor)
            except LookupError:
                return self._pinned.region(tensor)
