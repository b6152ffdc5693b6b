"""Results that leave a GPU for the host's hands, a few micro-batches behind what it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipepar.comm.channels.memory import laid_out, plain
from pipepar.comm.channels.wire import describe
from pipepar.comm.gpu.device import Event, Gpu, Stream, wait_for_event
from pipepar.comm.gpu.packing import Packing
from pipepar.comm.gpu.slots import Outbox
from pipepar.engine.loop import Arrival
from pipepar.microbatch import Value
from pipepar.trace import Tracer


@dataclass(frozen=True, slots=True)
class _Copy:
    """A micro-batch whose copy is under way."""

    index: int
    here: dict[str, Value]
    """What lay on the host already."""
    coming: tuple[str, ...]
    """Names of what does not yet."""
    packing: Packing
    """How that lies in the memory."""
    memory: torch.Tensor
    """Of the host; uint8."""
    done: Event
    """When it is all there."""

    def wait(self) -> Arrival:
        """The micro-batch, once all of it has arrived."""
        wait_for_event(self.done)
        for name, tensor_layout, begin in zip(
            self.coming, self.packing.tensors, self.packing.begins, strict=True
        ):
            self.here[name] = laid_out(
                tensor_layout, self.memory[begin : begin + tensor_layout.nbytes]
            )
        return self.index, self.here


def copied_to_host(
    results: Iterator[Arrival], names: Sequence[str], gpu: Gpu, ahead: int, tracer: Tracer
) -> Iterator[Arrival]:
    """Copy results to the host while the GPU computes on. *Local.*

    Args:
        results: micro-batches with all the values known at this stage.
        names: those to copy; what lies on the host already comes along, the rest is left behind.
        gpu: where they are computed.
        ahead: micro-batches that may be computed beyond the one that is waited for, at least 1.
        tracer: is told of the wait, which is for a GPU or for whom that waits for.

    Yields:
        The same micro-batches in order, each once it has arrived.
    """
    outbox = Outbox(gpu, ahead + 1)
    under_way = deque[_Copy]()
    for index, values in results:
        under_way.append(_landing(index, values, names, gpu, outbox))
        while under_way and (len(under_way) > ahead or under_way[0].done.query()):
            yield _landed(under_way.popleft(), tracer)
    while under_way:
        yield _landed(under_way.popleft(), tracer)


def _landed(landing: _Copy, tracer: Tracer) -> Arrival:
    tracer.enter("send", landing.index)
    arrival = landing.wait()
    tracer.enter("other", landing.index)
    return arrival


def _landing(
    index: int, values: dict[str, Value], names: Sequence[str], gpu: Gpu, outbox: Outbox
) -> _Copy:
    def is_held(value: Value) -> bool:
        return isinstance(value, torch.Tensor) and gpu.holds(value)

    here = {name: value for name, value in values.items() if not is_held(value)}
    coming = tuple(name for name in names if is_held(values[name]))
    tensors = tuple(plain(values[name]) for name in coming)
    packing = Packing.of(tuple(map(describe, tensors)))
    memory = gpu.pinned(packing.nbytes)

    def carry(slot: torch.Tensor, stream: Stream) -> None:
        gpu.copy(memory, slot, stream)

    done = outbox.leave(packing.parts(tensors), packing.nbytes, carry)
    return _Copy(index, here, coming, packing, memory, done)
