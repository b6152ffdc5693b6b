"""The sending end of a channel from a GPU to a host, through pinned memory.

    compute  copy into a slot
    side     copy the slot to pinned memory, record the event `copied`
    engine   start the MPI sends when `copied` has completed

No thread waits for the copies. The rank continues to compute, and the progress engine polls the
event of the oldest micro-batch that has not been sent.
"""

from __future__ import annotations

from collections import deque
from typing import Final, cast

import torch

from pipepar.comm.channels.entries import entries_of
from pipepar.comm.channels.memory import TensorLayout, dense, packed, plain, whole
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint
from pipepar.comm.channels.mpi_sender import MpiSender
from pipepar.comm.gpu.cuda import Gpu, Stream
from pipepar.comm.gpu.slots import Outbox, Part
from pipepar.comm.native._progress import Engine
from pipepar.microbatch import MicroBatch, Value

# One slot is filled while the other is copied to pinned memory.
_SLOTS: Final = 2


class StagedSender:
    """The sending end; see `channel.Sender`.

    Args:
        endpoint: the channel.
        engine: the progress engine that starts and tests its sends.
        gpu: the GPU of the stage.
    """

    def __init__(self, endpoint: MpiEndpoint, engine: Engine, gpu: Gpu) -> None:
        self._gpu = gpu
        self._sender = MpiSender(endpoint, engine, gpu.event_query)
        self._outbox = Outbox(gpu, _SLOTS)
        self._copied = deque(gpu.event() for _ in range(endpoint.depth))

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`; tensors in host memory are sent without a copy if they are dense."""
        values = tuple(map(plain, entries_of(microbatch)))
        layout = self._sender.layout(values)
        # This must precede the copy: until it returns, the engine may still query the event that
        # `_copy_to_host` reuses.
        self._sender.admit()
        resident = [
            tensor_layout
            for tensor_layout in layout.tensors
            if self._gpu.holds(_tensor(tensor_layout, values))
        ]
        begins, nbytes = packed(resident)
        places = {
            tensor_layout.position: begin
            for tensor_layout, begin in zip(resident, begins, strict=True)
        }
        pinned = self._gpu.pinned(nbytes)
        parts: list[Part] = []
        memory: list[torch.Tensor] = []
        for tensor_layout in layout.tensors:
            tensor, begin = _tensor(tensor_layout, values), places.get(tensor_layout.position)
            if begin is None:
                memory.append(dense(tensor_layout, tensor))
            else:
                parts.append((begin, whole(tensor_layout, tensor)))
                memory.append(pinned[begin:])
        gate = self._copy_to_host(parts, pinned) if nbytes else 0
        self._sender.post(microbatch, layout, memory, gate)

    def ready(self) -> bool:
        """See `Sender.ready`."""
        return self._sender.ready()

    def end(self) -> None:
        """See `Sender.end`."""
        self._sender.end()

    def close(self) -> None:
        """See `Sender.close`."""
        self._sender.close()

    def abort(self) -> None:
        """See `Sender.abort`."""
        self._sender.abort()

    def _copy_to_host(self, parts: list[Part], pinned: torch.Tensor) -> int:
        """Enqueue the copy of the parts to pinned memory; return its event's CUDA handle."""
        copied = self._copied[0]
        self._copied.rotate(-1)

        def transfer(slot: torch.Tensor, stream: Stream) -> None:
            self._gpu.copy(pinned, slot, stream)
            copied.record(stream)

        self._outbox.leave(parts, len(pinned), transfer)
        return copied.cuda_event


def _tensor(tensor_layout: TensorLayout, values: tuple[Value, ...]) -> torch.Tensor:
    return cast("torch.Tensor", values[tensor_layout.position])
