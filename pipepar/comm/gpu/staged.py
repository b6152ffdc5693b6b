"""The sending end from a GPU to a host, by way of page-locked memory.

    compute  copy into a slot
    side     copy the slot to page-locked memory, record copied
    engine   copied has come: start the MPI sends

No thread waits for any of this. The rank goes on computing, and the progress engine looks at the
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

# A copy into a slot, and one out of it.
_SLOTS: Final = 2


class StagedSender:
    """The sending end; see `channel.Sender`. Making one is *local*.

    Args:
        endpoint: which channel.
        engine: what moves it.
        gpu: where the stage computes.
    """

    def __init__(self, endpoint: MpiEndpoint, engine: Engine, gpu: Gpu) -> None:
        self._gpu = gpu
        self._sender = MpiSender(endpoint, engine, gpu.event_query)
        self._outbox = Outbox(gpu, _SLOTS)
        self._copied = deque(gpu.event() for _ in range(endpoint.depth))

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`; values of the host among those of the GPU go from where they lie."""
        values = tuple(map(plain, entries_of(microbatch)))
        layout = self._sender.layout(values)
        # First of all: with room for one more, nobody asks about the oldest event any longer.
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
        gate = self._carry(parts, pinned) if nbytes else 0
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

    def _carry(self, parts: list[Part], pinned: torch.Tensor) -> int:
        """Have the GPU bring these to the host; the event of their being there."""
        copied = self._copied[0]
        self._copied.rotate(-1)

        def carry(slot: torch.Tensor, stream: Stream) -> None:
            self._gpu.copy(pinned, slot, stream)
            copied.record(stream)

        self._outbox.leave(parts, len(pinned), carry)
        return copied.cuda_event


def _tensor(tensor_layout: TensorLayout, values: tuple[Value, ...]) -> torch.Tensor:
    return cast("torch.Tensor", values[tensor_layout.position])
