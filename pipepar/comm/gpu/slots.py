"""Device memory between a channel and the CUDA stream that computes, a slot for each micro-batch.

The order of things is kept by events alone; the host never waits.

    Outbox   compute: wait left[slot], copy into it, record done
             side:    wait done, carry it away, record left[slot]
    Inbox    side:    wait consumed[slot], fill it, record arrived[slot]
             compute: wait arrived[slot], read it, record consumed[slot]

So no slot is written again before it was carried away, and none is read before it has arrived. A
slot that grows lets go of its old memory after the same waits, in the order of `Gpu.empty`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipepar.comm.gpu.cuda import Event, Gpu, Stream

Carry = Callable[[torch.Tensor, Stream], None]
"""Moves a slot's memory, uint8 [nbytes], in or out, on a CUDA stream."""

Part = tuple[int, torch.Tensor]
"""Where in a slot, in bytes, and what of the device's memory goes there: a tensor without holes
between its elements, of whatever dtype and shape."""


def place_of(part: Part, memory: torch.Tensor) -> torch.Tensor:
    """Where in a slot's memory a part lies, in its own dtype and shape."""
    begin, tensor = part
    return memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


@dataclass(slots=True)
class _Slot:
    """Memory for one micro-batch, and when it may be used again."""

    memory: torch.Tensor
    """uint8 [capacity]."""
    free: Event
    """Its last content is not needed any more."""


class Outbox:
    """Slots that micro-batches leave from.

    Args:
        gpu: where they lie.
        slots: how many may be on their way, at least 1.
    """

    def __init__(self, gpu: Gpu, slots: int) -> None:
        self._gpu = gpu
        self._side = gpu.stream()
        self._done = gpu.event()
        self._slots = [_Slot(gpu.empty(0), gpu.event()) for _ in range(slots)]
        self._next = 0

    def leave(self, parts: Sequence[Part], nbytes: int, carry: Carry) -> Event:
        """Take a micro-batch along and have it carried away; returns at once.

        Args:
            parts: what to take; free to be written again by `compute`.
            nbytes: what they take in all.
            carry: called once, with that many bytes of a slot.

        Returns:
            The event of it having left, until the slot's next turn.
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
        carry(slot.memory[:nbytes], self._side)
        slot.free.record(self._side)
        return slot.free

    @property
    def last(self) -> Event:
        """The event of everything having left so far."""
        return self._slots[self._next - 1].free


class Inbox:
    """Slots that micro-batches arrive in.

    Args:
        gpu: where they lie.
        slots: how many there are, at least 1; one of them is read while the others fill.
    """

    def __init__(self, gpu: Gpu, slots: int) -> None:
        self._gpu = gpu
        self._side = gpu.stream()
        self._arrived = [gpu.event() for _ in range(slots)]
        self._slots = [_Slot(gpu.empty(0), gpu.event()) for _ in range(slots)]
        self._posted = 0
        self._taken = 0
        self._released = 0

    def post(self, nbytes: int, carry: Carry) -> None:
        """Have the next slot filled; returns at once.

        Args:
            nbytes: how much will arrive.
            carry: called once, with that many bytes of a slot.
        """
        assert self._posted < self._released + len(self._slots), "no slot is free"
        gpu, place = self._gpu, self._posted % len(self._slots)
        slot = self._slots[place]
        self._posted += 1
        if len(slot.memory) < nbytes:
            slot.memory = gpu.empty(nbytes)
            slot.free.record(gpu.compute)  # whoever had this memory before, had it on `compute`
        self._side.wait_event(slot.free)
        carry(slot.memory[:nbytes], self._side)
        self._arrived[place].record(self._side)

    @property
    def last(self) -> Event:
        """The event of everything having arrived that was posted so far."""
        return self._arrived[(self._posted - 1) % len(self._slots)]

    def take(self) -> torch.Tensor:
        """The oldest slot that was posted, for `compute` to read until `release`; uint8."""
        place = self._taken % len(self._slots)
        self._taken += 1
        self._gpu.compute.wait_event(self._arrived[place])
        return self._slots[place].memory

    def release(self) -> None:
        """Let the oldest slot that was taken be filled again, once `compute` has come this far."""
        assert self._released < self._taken, "no slot is taken"
        self._slots[self._released % len(self._slots)].free.record(self._gpu.compute)
        self._released += 1
