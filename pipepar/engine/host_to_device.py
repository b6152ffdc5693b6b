"""Copies of a stage's inputs from the host to its GPU, on a CUDA stream of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from pipepar.comm.channels.memory import plain
from pipepar.comm.channels.spec import describe
from pipepar.comm.gpu.cuda import Gpu, Stream
from pipepar.comm.gpu.packing import Packing
from pipepar.comm.gpu.slots import Inbox, Part, place_of
from pipepar.microbatch import Value

# One slot is read by the stage while the next one is filled.
_SLOTS: Final = 2


class HostToDevice:
    """Copies host tensors to a GPU on a CUDA stream of its own, without blocking the host.

    Args:
        gpu: the GPU of the stage.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._inbox = Inbox(gpu, _SLOTS)
        self._slot_taken = False

    def __call__(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Return the values with all tensors on the GPU.

        Args:
            values: in any order, on the host or on the GPU.

        Returns:
            The values in the same order. A tensor that was copied is valid until the next call.
        """
        if self._slot_taken:
            self._inbox.release()
        moved = list(map(plain, values))
        packing = Packing.of(tuple(describe(v) if self._on_host(v) else None for v in moved))
        self._slot_taken = packing.nbytes > 0
        memory = self._copied(packing, moved) if self._slot_taken else self._gpu.empty(0)
        for position, tensor in packing.unpacked(memory, self._gpu):
            moved[position] = tensor
        return tuple(moved)

    def _on_host(self, value: Value) -> bool:
        return isinstance(value, torch.Tensor) and not self._gpu.holds(value)

    def _copied(self, packing: Packing, values: Sequence[Value]) -> torch.Tensor:
        """Enqueue the copy of the packed tensors into a slot, and return its memory."""
        parts = packing.parts(tuple(values))
        self._inbox.post(packing.nbytes, lambda memory, stream: self._copy(parts, memory, stream))
        return self._inbox.take()

    def _copy(self, parts: Sequence[Part], memory: torch.Tensor, stream: Stream) -> None:
        for part in parts:
            self._gpu.copy(place_of(part, memory), self._pinned(part[1]), stream)

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in pinned, contiguous memory; data received over MPI already is."""
        if tensor.is_pinned() and tensor.is_contiguous():
            return tensor
        staged = self._gpu.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        return staged.copy_(tensor)
