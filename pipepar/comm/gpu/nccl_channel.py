"""The channel between two GPUs: NCCL carries tensors on the GPU, a host channel all other values.

For each micro-batch, the host channel carries an announcement: the values in host memory, and a
text with the spec of the tensors on the GPU. An unchanged spec is not sent again.

The sender enqueues the NCCL send, then announces. Hosts run ahead of their GPUs: the receiver
knows the sizes early and posts receives of exactly these sizes, one ahead of the micro-batch that
the stage computes. A receive posted earlier would only occupy the GPU.

The host channel limits how far the hosts run ahead, and events limit the GPUs; see `slots`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import torch

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.memory import plain
from pipepar.comm.channels.spec import Spec, describe, matches_spec, pack_spec, unpack_spec
from pipepar.comm.gpu.cuda import Gpu, Stream, wait_for_event
from pipepar.comm.gpu.packing import Packing
from pipepar.comm.gpu.slots import Inbox, Outbox, Transfer
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value
from pipepar.trace import Kind, Mark

Watch: TypeAlias = Callable[[Kind, int, Mark, Mark], None]
"""Takes "send" or "receive", the index of the micro-batch, and the begin and end of a transfer."""

# One micro-batch that the stage computes, and one that is received meanwhile.
_POSTED: Final = 2


class P2PTransport(Protocol):
    """Transfers bytes between two GPUs, in the order of the calls; see `nccl.Communicator`."""

    def send(self, address: int, nbytes: int, stream: int) -> None:
        """Enqueue a send from device memory on a CUDA stream."""

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        """Enqueue a receive into device memory on a CUDA stream."""

    def close(self) -> None:
        """Free the transport when no transfer is under way. May be called twice.

        May wait for other ranks.
        """


class GpuSender:
    """The sending end; see `channel.Sender`.

    Args:
        host_channel: the channel between the hosts.
        transport: the transport of the tensors' bytes, not shared with other channels.
        gpu: the GPU of the tensors.
        slots: the number of micro-batches that may be under way on the GPU.
        watch: called for each transfer that is enqueued; None to measure none.
    """

    def __init__(
        self,
        host_channel: Sender,
        transport: P2PTransport,
        gpu: Gpu,
        slots: int,
        watch: Watch | None = None,
    ) -> None:
        self._host = host_channel
        self._transport = transport
        self._gpu = gpu
        self._watch = watch
        self._outbox = Outbox(gpu, slots)
        self._spec: Spec = ()
        self._text = _text_of(())
        self._packing = Packing.of(())

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`; later work on the compute stream may overwrite the tensors."""
        values = tuple(map(plain, microbatch.values))
        resident = tuple(map(self._resident, values))
        self._update_spec(resident)
        rest = (
            value if here is None else None for value, here in zip(values, resident, strict=True)
        )
        with self._gpu.range("send"):
            if self._packing.nbytes:
                index = microbatch.index
                transfer = _timed(self._transfer, "send", index, self._gpu, self._watch)
                self._outbox.leave(self._packing.parts(values), self._packing.nbytes, transfer)
            # Announce last. The receiving GPU then waits only for this GPU, whose work is already
            # enqueued. Otherwise it could wait for this host, and this host for that GPU.
            self._host.send(replace(microbatch, values=(self._text, *rest)))

    def ready(self) -> bool:
        """See `Sender.ready`; only the host channel matters, since slots delay only the GPU."""
        return self._host.ready()

    def end(self) -> None:
        """See `Sender.end`."""
        self._host.end()

    def close(self) -> None:
        """See `Sender.close`."""
        self._host.close()
        wait_for_event(self._outbox.last)
        self._transport.close()

    def abort(self) -> None:
        """See `Sender.abort`; the communicators are aborted by the world, all at once."""
        self._host.abort()

    def _resident(self, value: Value) -> torch.Tensor | None:
        """Return the value if it is a tensor on the GPU, else None: the host channel carries it."""
        return value if isinstance(value, torch.Tensor) and self._gpu.holds(value) else None

    def _update_spec(self, resident: tuple[torch.Tensor | None, ...]) -> None:
        if not matches_spec(self._spec, resident):
            self._spec = tuple(map(describe, resident))
            self._text, self._packing = _text_of(self._spec), Packing.of(self._spec)

    def _transfer(self, memory: torch.Tensor, stream: Stream) -> None:
        self._transport.send(memory.data_ptr(), memory.nbytes, stream.cuda_stream)


@dataclass(frozen=True, slots=True)
class _Posted:
    """An announced micro-batch; the receive of its tensors on the GPU, if any, is posted."""

    announcement: MicroBatch
    """The micro-batch of the host channel."""
    values: list[Value]
    """The values in host memory; None for tensors on the GPU."""
    packing: Packing


class GpuReceiver:
    """The receiving end; see `channel.Receiver`.

    The tensors of a micro-batch are valid until the next one is requested.

    Args:
        host_channel: the channel between the hosts.
        transport: the transport of the tensors' bytes, not shared with other channels.
        gpu: the GPU that receives the tensors.
        watch: called for each transfer that is enqueued; None to measure none.
    """

    def __init__(
        self, host_channel: Receiver, transport: P2PTransport, gpu: Gpu, watch: Watch | None = None
    ) -> None:
        self._host = host_channel
        self._transport = transport
        self._gpu = gpu
        self._watch = watch
        self._inbox = Inbox(gpu, _POSTED)
        self._text = _text_of(())
        self._packing = Packing.of(())
        self._posted: deque[_Posted] = deque()

    def receive(self) -> Iterator[MicroBatch]:
        """See `Receiver.receive`."""
        announced = self._host.receive()
        while self._post_ahead(announced):
            posted = self._posted.popleft()
            yield self._take(posted)
            if posted.packing.nbytes:
                self._inbox.release()

    def ready(self) -> bool:
        """See `Receiver.ready`."""
        return bool(self._posted) or self._host.ready()

    def close(self) -> None:
        """See `Receiver.close`."""
        self._host.close()
        wait_for_event(self._inbox.last)
        self._transport.close()

    def abort(self) -> None:
        """See `Receiver.abort`; the communicators are aborted by the world, all at once."""
        self._host.abort()

    def _post_ahead(self, announced: Iterator[MicroBatch]) -> bool:
        """Take announcements that have arrived and post their receives, up to `_POSTED`.

        Waits for an announcement if nothing is posted. Returns False if the stream has ended and
        nothing is posted.
        """
        while not self._posted or (len(self._posted) < _POSTED and self._host.ready()):
            announcement = next(announced, None)
            if announcement is None:
                break
            self._post(announcement)
        return bool(self._posted)

    def _post(self, announcement: MicroBatch) -> None:
        text, *values = announcement.values
        if text != self._text:
            spec = _spec_of(text)
            if len(spec) != len(values):
                raise WireError(
                    f"a micro-batch is announced with {len(values)} values, but its spec has "
                    f"{len(spec)}: both ranks must run the same version of pipepar"
                )
            self._text, self._packing = str(text), Packing.of(spec)
        if self._packing.nbytes:
            index = announcement.index
            transfer = _timed(self._transfer, "receive", index, self._gpu, self._watch)
            self._inbox.post(self._packing.nbytes, transfer)
        self._posted.append(_Posted(announcement, values, self._packing))

    def _take(self, posted: _Posted) -> MicroBatch:
        values, packing = posted.values, posted.packing
        with self._gpu.range("receive"):
            memory = self._inbox.take() if packing.nbytes else self._gpu.empty(0)
            for position, tensor in packing.unpacked(memory, self._gpu):
                values[position] = tensor
        return replace(posted.announcement, values=tuple(values))

    def _transfer(self, memory: torch.Tensor, stream: Stream) -> None:
        self._transport.receive(memory.data_ptr(), memory.nbytes, stream.cuda_stream)


def _timed(transfer: Transfer, kind: Kind, index: int, gpu: Gpu, watch: Watch | None) -> Transfer:
    """Return the transfer between two timed events, which are passed to `watch`."""
    if watch is None:
        return transfer

    def timed(memory: torch.Tensor, stream: Stream) -> None:
        begin, end = gpu.event(timed=True), gpu.event(timed=True)
        begin.record(stream)
        transfer(memory, stream)
        end.record(stream)
        watch(kind, index, begin, end)

    return timed


def _text_of(spec: Spec) -> str:
    """Return a packed spec as a string for the host channel, one character per byte."""
    return pack_spec(spec).decode("latin-1")


def _spec_of(text: Value) -> Spec:
    """Return the spec that `_text_of` converted to a string.

    Raises:
        WireError: the value is no such string.
    """
    try:
        return unpack_spec(str(text).encode("latin-1"))
    except UnicodeEncodeError as error:
        raise WireError(
            f"a micro-batch is announced by {text!r}, expected a spec: both ranks must run the "
            "same version of pipepar"
        ) from error
