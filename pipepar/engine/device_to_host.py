"""Results that leave a GPU for the host, a few micro-batches behind what it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipepar.comm.channels.memory import laid_out, plain
from pipepar.comm.channels.spec import describe
from pipepar.comm.gpu.cuda import Event, Gpu, Stream, wait_for_event
from pipepar.comm.gpu.packing import Packing
from pipepar.comm.gpu.slots import Outbox
from pipepar.microbatch import MicroBatch, Value
from pipepar.trace import Tracer


@dataclass(frozen=True, slots=True)
class _Copy:
    """A micro-batch whose copy is under way."""

    microbatch: MicroBatch
    """With the values that were on the host already; None for the others."""
    packing: Packing
    """The layout of the others in the memory."""
    memory: torch.Tensor
    """Of the host; uint8."""
    done: Event
    """When all of them are there."""

    def wait(self) -> MicroBatch:
        """The micro-batch, once all of it has arrived."""
        wait_for_event(self.done)
        values = list(self.microbatch.values)
        for layout, begin in zip(self.packing.tensors, self.packing.begins, strict=True):
            data = self.memory[begin : begin + layout.nbytes]
            values[layout.position] = laid_out(layout, data)
        return self.microbatch.with_values(tuple(values))


def copied_to_host(
    results: Iterator[MicroBatch], gpu: Gpu, ahead: int, tracer: Tracer
) -> Iterator[MicroBatch]:
    """Copy results to the host while the GPU computes on.

    Args:
        results: micro-batches of the model's outputs.
        gpu: where they are computed.
        ahead: micro-batches that may be computed beyond the one that is waited for, at least 1.
        tracer: records the waiting, which is for a GPU.

    Yields:
        The same micro-batches in order, each once it has arrived.
    """
    outbox = Outbox(gpu, ahead + 1)
    under_way = deque[_Copy]()
    for microbatch in results:
        under_way.append(_copy(microbatch, gpu, outbox))
        while under_way and (len(under_way) > ahead or under_way[0].done.query()):
            yield _arrived(under_way.popleft(), tracer)
    while under_way:
        yield _arrived(under_way.popleft(), tracer)


def _arrived(copy: _Copy, tracer: Tracer) -> MicroBatch:
    index = copy.microbatch.index
    tracer.enter("send", index)
    microbatch = copy.wait()
    tracer.enter("other", index)
    return microbatch


def _copy(microbatch: MicroBatch, gpu: Gpu, outbox: Outbox) -> _Copy:
    values = tuple(map(plain, microbatch.values))
    on_gpu = [isinstance(value, torch.Tensor) and gpu.holds(value) for value in values]
    packing = Packing.of(
        tuple(
            describe(value) if there else None for value, there in zip(values, on_gpu, strict=True)
        )
    )
    here: tuple[Value, ...] = tuple(
        None if there else value for value, there in zip(values, on_gpu, strict=True)
    )
    memory = gpu.pinned(packing.nbytes)

    def carry(slot: torch.Tensor, stream: Stream) -> None:
        gpu.copy(memory, slot, stream)

    done = outbox.leave(packing.parts(values), packing.nbytes, carry)
    return _Copy(microbatch.with_values(here), packing, memory, done)
