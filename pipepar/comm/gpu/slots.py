"""Slots: buffers in device memory between a channel and the compute stream.

Each slot holds one micro-batch. Events order its use; the host never waits.

    Outbox   compute: wait left[slot], copy into it, record done
             side:    wait done, transfer it, record left[slot]
    Inbox    side:    wait consumed[slot], transfer into it, record arrived[slot]
             compute: wait arrived[slot], read it, record consumed[slot]

So a slot is not overwritten before its content has left or was consumed, and not read before its
content has arrived. When a slot grows, `compute` already waits for the last transfer from or into
its old memory, as `Gpu.empty` requires. Each outbox and inbox has a CUDA stream `side` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipepar.comm.gpu.cuda import Event, Gpu, Stream

Transfer = Callable[[torch.Tensor, Stream], None]
"""Enqueues a transfer from or into a slot's memory, uint8 [nbytes], on a CUDA stream."""

Part = tuple[int, torch.Tensor]
"""An offset in a slot, in bytes, and the tensor to copy there, on the host or the device. The
tensor may have any strides; in the slot it is contiguous."""


def place_of(part: Part, memory: torch.Tensor) -> torch.Tensor:
    """Return the place of a part in a slot's memory, as a view with the part's dtype and shape."""
    begin, tensor = part
    return memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


@dataclass(slots=True)
class _Slot:
    """A buffer for one micro-batch, and the event after which it may be reused."""

    memory: torch.Tensor
    """uint8 [capacity]."""
    free: Event
    """Completes when the last content has left or was consumed."""


class Outbox:
    """Slots for outgoing micro-batches.

    Args:
        gpu: the GPU whose memory the slots use.
        slots: the number of micro-batches that may be in transfer at once, at least 1; `compute`
            waits when a further one is enqueued.
    """

    def __init__(self, gpu: Gpu, slots: int) -> None:
        self._gpu = gpu
        self._side = gpu.stream()
        self._done = gpu.event()
        self._slots = [_Slot(gpu.empty(0), gpu.event()) for _ in range(slots)]
        self._next = 0

    def leave(self, parts: Sequence[Part], nbytes: int, transfer: Transfer) -> Event:
        """Enqueue the copy of a micro-batch into a slot and its transfer from there.

        Args:
            parts: tensors on the device; later work on `compute` may overwrite them.
            nbytes: bytes of the slot that the parts occupy, including the gaps between them.
            transfer: called once, before this method returns, with the first `nbytes` of the slot.

        Returns:
            The event of the end of the transfer, valid until the slot is used again.
        """
        gpu, slot = self._gpu, self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        gpu.compute.wait_event(slot.free)
        if len(slot.memory) < nbytes:
            slot.memory = gpu.empty(nbytes)
        for part in parts:
            gpu.copy(place_of(part, slot.memory), part[1], gpu.compute)
        self._done.record(gpu.compute)
        self._side.wait_event(self._done)
        transfer(slot.memory[:nbytes], self._side)
        slot.free.record(self._side)
        return slot.free

    @property
    def last(self) -> Event:
        """The event of the end of the last transfer; complete if there was none."""
        return self._slots[self._next - 1].free


class Inbox:
    """Slots for incoming micro-batches.

    Args:
        gpu: the GPU whose memory the slots use.
        slots: the number of slots, at least 1; one is read while the others are filled.
    """

    def __init__(self, gpu: Gpu, slots: int) -> None:
        self._gpu = gpu
        self._side = gpu.stream()
        self._arrived = [gpu.event() for _ in range(slots)]
        self._slots = [_Slot(gpu.empty(0), gpu.event()) for _ in range(slots)]
        self._posted = 0
        self._taken = 0
        self._released = 0

    def post(self, nbytes: int, transfer: Transfer) -> None:
        """Enqueue a transfer into the next slot, which must be unused or released.

        Args:
            nbytes: the number of bytes that will arrive.
            transfer: called once, before this method returns, with the first `nbytes` of the slot.
        """
        assert self._posted < self._released + len(self._slots), "no slot is free"
        gpu, index = self._gpu, self._posted % len(self._slots)
        slot = self._slots[index]
        self._posted += 1
        if len(slot.memory) < nbytes:
            slot.memory = gpu.empty(nbytes)
            slot.free.record(gpu.compute)  # earlier uses of this memory were on `compute`
        self._side.wait_event(slot.free)
        transfer(slot.memory[:nbytes], self._side)
        self._arrived[index].record(self._side)

    @property
    def last(self) -> Event:
        """The event of the end of the last posted transfer; complete if there was none."""
        return self._arrived[(self._posted - 1) % len(self._slots)]

    def take(self) -> torch.Tensor:
        """Return the memory of the oldest posted slot that was not taken, uint8 [capacity].

        There must be such a slot; this is not checked. `compute` waits for the transfer; work
        enqueued on it before `release` may read the memory.
        """
        index = self._taken % len(self._slots)
        self._taken += 1
        self._gpu.compute.wait_event(self._arrived[index])
        return self._slots[index].memory

    def release(self) -> None:
        """Free the oldest taken slot after the work that is enqueued on `compute` so far."""
        assert self._released < self._taken, "no slot is taken"
        self._slots[self._released % len(self._slots)].free.record(self._gpu.compute)
        self._released += 1
