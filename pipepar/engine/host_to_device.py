"""What a stage is called with comes to its GPU: from the source, or over MPI from a host."""

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

# One is computed while the next one is filled.
_SLOTS: Final = 2


class HostToDevice:
    """Copies host tensors to a GPU on a CUDA stream of its own; waits for nothing."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._inbox = Inbox(gpu, _SLOTS)
        self._holding = False

    def __call__(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """The values, every tensor on the GPU; those that were not, until the next call."""
        if self._holding:
            self._inbox.release()
        near = list(map(plain, values))
        packing = Packing.of(tuple(describe(v) if self._is_far(v) else None for v in near))
        self._holding = packing.nbytes > 0
        memory = self._filled(packing, near) if self._holding else self._gpu.empty(0)
        for position, tensor in packing.unpacked(memory, self._gpu):
            near[position] = tensor
        return tuple(near)

    def _is_far(self, value: Value) -> bool:
        return isinstance(value, torch.Tensor) and not self._gpu.holds(value)

    def _filled(self, packing: Packing, values: Sequence[Value]) -> torch.Tensor:
        parts = packing.parts(tuple(values))
        self._inbox.post(packing.nbytes, lambda memory, stream: self._carry(parts, memory, stream))
        return self._inbox.take()

    def _carry(self, parts: Sequence[Part], memory: torch.Tensor, stream: Stream) -> None:
        for part in parts:
            self._gpu.copy(place_of(part, memory), self._pinned(part[1]), stream)

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same in memory that a GPU can read by itself; what came over MPI is there already."""
        if tensor.is_pinned() and tensor.is_contiguous():
            return tensor
        staged = self._gpu.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        return staged.copy_(tensor)
