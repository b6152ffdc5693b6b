"""The sending end from a GPU to a host, by way of page-locked memory.

    compute  copy into a slot
    side     copy the slot to page-locked memory, record left[slot]
    engine   left[slot] has come: start the MPI sends

No thread waits for any of this. The rank goes on computing, and the progress engine looks at the
event of the oldest micro-batch that has not been sent.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

import torch

from pipepar.comm.edge import Edge
from pipepar.comm.gpu import Gpu, Stream
from pipepar.comm.memory import Leg, core, dense, flat, packed, plain
from pipepar.comm.mpi import MpiSender
from pipepar.comm.native._progress import Engine
from pipepar.comm.slots import Outbox, Part
from pipepar.errors import PipeparError
from pipepar.microbatch import MicroBatch, Value


def event_query_address() -> int:
    """Address of the function that tells whether a CUDA event has come, for `Engine.lane`. *Local.*

    It is the driver's: there is one in a process, its name never changes and, unlike the runtime's,
    it needs no context of the thread that calls it, and makes none on the first GPU.

    Raises:
        PipeparError: there is no driver.
    """
    try:
        query = ctypes.CDLL("libcuda.so.1").cuEventQuery
    except (OSError, AttributeError) as error:
        raise PipeparError(
            f"NVIDIA's driver is not there ({error}): install it, or run with --device cpu"
        ) from error
    address = ctypes.cast(query, ctypes.c_void_p).value
    assert address is not None
    return address


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in a GPU's memory. *Local.*"""
    return not tensor.is_cpu


class StagedSender:
    """The sending end; see `channel.Sender`. Making one is *local*.

    Args:
        edge: which channel.
        engine: what moves it.
        gpu: where the stage computes.
        query: address of the function that tells whether an event of `gpu` has come.
        is_resident: whether a tensor lies in `gpu`'s memory; those of the host may be among them,
            and are sent from where they lie.
    """

    def __init__(
        self,
        edge: Edge,
        engine: Engine,
        gpu: Gpu,
        query: int,
        is_resident: Callable[[torch.Tensor], bool] = on_gpu,
    ) -> None:
        self._gpu = gpu
        self._is_resident = is_resident
        self._sender = MpiSender(edge, engine, query)
        self._outbox = Outbox(gpu, edge.depth)

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`."""
        values = tuple(map(plain, microbatch.values))
        layout = self._sender.layout(values)
        # First of all: with room for one more, the next slot's event is not waited for any longer.
        self._sender.admit()
        resident = [leg for leg in layout.legs if self._is_resident(_tensor(leg, values))]
        begins, nbytes = packed(resident)
        places = {leg.position: begin for leg, begin in zip(resident, begins, strict=True)}
        pinned = self._gpu.pinned(nbytes)
        parts: list[Part] = []
        memory: list[torch.Tensor] = []
        for leg in layout.legs:
            tensor, begin = _tensor(leg, values), places.get(leg.position)
            if begin is None:
                memory.append(dense(leg, tensor))
            else:
                parts.append((begin, core(tensor) if leg.has_holes else flat(tensor)))
                memory.append(pinned[begin:])
        gate = self._carry(parts, pinned) if nbytes else 0
        self._sender.post(microbatch.index, layout, memory, gate)

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

        def carry(slot: torch.Tensor, stream: Stream) -> None:
            self._gpu.copy(pinned, slot, stream)

        return self._outbox.leave(parts, len(pinned), carry).cuda_event


def _tensor(leg: Leg, values: tuple[Value, ...]) -> torch.Tensor:
    return cast("torch.Tensor", values[leg.position])
