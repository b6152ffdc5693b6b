"""Asynchronous copies of results from a GPU to the host, while it computes the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipepar.comm.channels.memory import plain, tensor_from_buffer
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
    """Its values on the host; None in place of each tensor that was on the GPU."""
    packing: Packing
    """The layout of those tensors in `memory`."""
    memory: torch.Tensor
    """uint8 [n], pinned memory of the host."""
    done: Event
    """The event at the end of the copy."""

    def wait(self) -> MicroBatch:
        """Wait for the copy and return the micro-batch with all values on the host."""
        wait_for_event(self.done)
        values = list(self.microbatch.values)
        for layout, begin in zip(self.packing.tensors, self.packing.begins, strict=True):
            data = self.memory[begin : begin + layout.nbytes]
            values[layout.position] = tensor_from_buffer(layout, data)
        return self.microbatch.with_values(tuple(values))


def copied_to_host(
    results: Iterator[MicroBatch], gpu: Gpu, ahead: int, tracer: Tracer
) -> Iterator[MicroBatch]:
    """Copy results to the host while the GPU computes the next micro-batches.

    Args:
        results: micro-batches of the model's outputs.
        gpu: the GPU that computes them.
        ahead: maximum number of further micro-batches that are taken from `results` before the
            oldest one is yielded, at least 1.
        tracer: receives the activity "send" while this thread waits for a copy.

    Yields:
        The same micro-batches in order, each after its copy has completed.
    """
    outbox = Outbox(gpu, ahead + 1)
    under_way = deque[_Copy]()
    for microbatch in results:
        under_way.append(_start_copy(microbatch, gpu, outbox))
        while under_way and (len(under_way) > ahead or under_way[0].done.query()):
            yield _wait(under_way.popleft(), tracer)
    while under_way:
        yield _wait(under_way.popleft(), tracer)


def _wait(copy: _Copy, tracer: Tracer) -> MicroBatch:
    index = copy.microbatch.index
    tracer.enter("send", index)
    microbatch = copy.wait()
    tracer.enter("other", index)
    return microbatch


def _start_copy(microbatch: MicroBatch, gpu: Gpu, outbox: Outbox) -> _Copy:
    values = tuple(map(plain, microbatch.values))
    on_gpu = [isinstance(value, torch.Tensor) and gpu.holds(value) for value in values]
    pairs = list(zip(values, on_gpu, strict=True))
    packing = Packing.of(tuple(describe(value) if remote else None for value, remote in pairs))
    on_host: tuple[Value, ...] = tuple(None if remote else value for value, remote in pairs)
    memory = gpu.pinned(packing.nbytes)

    def copy_slot(slot: torch.Tensor, stream: Stream) -> None:
        gpu.copy(memory, slot, stream)

    done = outbox.leave(packing.parts(values), packing.nbytes, copy_slot)
    return _Copy(microbatch.with_values(on_host), packing, memory, done)
