"""The host time of a hop between GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.catalog.gpu.pipeline import wait_until_idle
from pipepar.comm.channels.link import Link
from pipepar.comm.gpu.cuda import Gpu, wait_for_event
from pipepar.comm.gpu.nccl import Communicator, Nccl
from pipepar.comm.world import World
from pipepar.microbatch import MicroBatch

_BURST: Final = 8
# The progress engine tests every 5 ms: after this time all announcements have arrived.
_SETTLE_SECONDS: Final = 0.03


def enqueued(world: World, gpu: Gpu, nbytes: int, bursts: int) -> list[list[float]]:
    """Measure the host time to send or to receive a micro-batch, by burst. *Collective.*

    No call waits: a burst fills the channel, and is received after all announcements arrived.

    Args:
        world: all ranks; rank 0 sends to rank 1, the other ranks are idle.
        gpu: the GPU of this rank.
        nbytes: the bytes of a micro-batch.
        bursts: the number of bursts; one more is not measured.

    Returns:
        The seconds of each call: of sending on rank 0, of receiving on rank 1, none elsewhere.
    """
    link = Link(0, 1, _BURST, from_gpu=True, to_gpu=True)
    receivers, senders = world.connect([link], gpu)
    payload = gpu.empty(nbytes)
    streams = [receiver.receive() for receiver in receivers.values()]
    found: list[list[float]] = []
    for burst in range(bursts + 1):
        numbers = range(burst * _BURST, (burst + 1) * _BURST)
        world.all_gather("")
        spent: list[float] = []
        for sender in senders.values():
            spent += [_seconds(partial(sender.send, MicroBatch(k, (payload,)))) for k in numbers]
        world.all_gather("")
        time.sleep(_SETTLE_SECONDS)
        for stream in streams:
            spent += [_seconds(partial(next, stream)) for _ in numbers]
        world.all_gather("")
        wait_until_idle(gpu)
        if burst and spent:
            found.append(spent)
    for sender in senders.values():
        sender.end()
    for stream in streams:
        for _ in stream:
            pass
    for sender in senders.values():
        sender.close()
    for receiver in receivers.values():
        receiver.close()
    return found


def enqueued_to_itself(nccl: Nccl, gpu: Gpu, nbytes: int, bursts: int) -> list[list[float]]:
    """Return the host seconds to enqueue a send and its receive on one rank, by burst."""
    edge = Communicator.start(nccl, nccl.unique_id(), 0, 1, "edge rank 0 -> rank 0")
    source, target, stream = gpu.empty(nbytes), gpu.empty(nbytes), gpu.stream()

    def transfer() -> None:
        with nccl.group():
            edge.send(source.data_ptr(), nbytes, stream.cuda_stream)
            edge.receive(target.data_ptr(), nbytes, stream.cuda_stream)

    found: list[list[float]] = []
    wait_until_idle(gpu)
    for _ in range(bursts + 1):
        found.append([_seconds(transfer) for _ in range(_BURST)])
        done = gpu.event()
        done.record(stream)
        wait_for_event(done)
    edge.close()
    return found[1:]


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
