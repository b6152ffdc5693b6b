"""The channel between two GPUs: their tensors by NCCL, all else by a channel between their hosts.

For every micro-batch the hosts' channel carries an announcement: the values that lie on the host,
as they are, and a text that tells how those on the GPU lie; one that is like the one before takes
no more than a header. So hosts run ahead of their GPUs: a receiver knows what will come long before
it does, and posts a receive of exactly that size, one ahead of what the stage computes. More would
only spin.

The hosts' channel bounds how far they run ahead, events how far the GPUs do; see `slots`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import torch

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.memory import plain
from pipepar.comm.channels.spec import Spec, describe, pack_spec, tells, unpack_spec
from pipepar.comm.gpu.cuda import Gpu, Stream, wait_for_event
from pipepar.comm.gpu.packing import Packing
from pipepar.comm.gpu.slots import Carry, Inbox, Outbox
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value
from pipepar.trace import Kind, Mark

Watch: TypeAlias = Callable[[Kind, int, Mark, Mark], None]
"""Receives every transfer: send or receive, its micro-batch, and marks of when it went on."""

# What the stage computes, and what travels meanwhile.
_POSTED: Final = 2


class P2PTransport(Protocol):
    """What moves bytes between two GPUs in the order they are given; see `nccl.Communicator`."""

    def send(self, address: int, nbytes: int, stream: int) -> None:
        """Send from the GPU's memory, as the next thing on a CUDA stream."""

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        """Receive into the GPU's memory, as the next thing on a CUDA stream."""

    def close(self) -> None:
        """Let go; nothing may be under way. May wait for others to do so; may be called twice."""


class GpuSender:
    """The sending end; see `channel.Sender`. Making one is *local*.

    Args:
        host_channel: the channel between the hosts.
        transport: what moves the bytes; no other end uses it.
        gpu: where the tensors lie.
        slots: micro-batches that may be on their way.
        watch: receives every transfer; None to take no times of them.
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
        """See `Sender.send`; tensors of the GPU are copied, and may be changed afterwards."""
        values = tuple(map(plain, microbatch.values))
        resident = tuple(map(self._resident, values))
        self._describe(resident)
        rest = (
            value if here is None else None for value, here in zip(values, resident, strict=True)
        )
        with self._gpu.range("send"):
            if self._packing.nbytes:
                carry = _watched(self._carry, "send", microbatch.index, self._gpu, self._watch)
                self._outbox.leave(self._packing.parts(values), self._packing.nbytes, carry)
            # Told last: whoever waits for it then waits for this GPU alone, not for its host too,
            # which may itself be held up by its GPU, and that by whoever waits.
            self._host.send(replace(microbatch, values=(self._text, *rest)))

    def ready(self) -> bool:
        """See `Sender.ready`."""
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
        """A tensor of the GPU; None for what goes by the hosts' channel."""
        return value if isinstance(value, torch.Tensor) and self._gpu.holds(value) else None

    def _describe(self, resident: tuple[torch.Tensor | None, ...]) -> None:
        if not tells(self._spec, resident):
            self._spec = tuple(map(describe, resident))
            self._text, self._packing = _text_of(self._spec), Packing.of(self._spec)

    def _carry(self, memory: torch.Tensor, stream: Stream) -> None:
        self._transport.send(memory.data_ptr(), memory.nbytes, stream.cuda_stream)


@dataclass(frozen=True, slots=True)
class _Posted:
    """A micro-batch that was announced, and whose bytes will come."""

    announcement: MicroBatch
    """As the hosts' channel brought it."""
    values: list[Value]
    """Those of the host; None for the others."""
    packing: Packing


class GpuReceiver:
    """The receiving end; see `channel.Receiver`. Making one is *local*.

    The tensors of a micro-batch hold until the next one is asked for.

    Args:
        host_channel: the channel between the hosts.
        transport: what moves the bytes; no other end uses it.
        gpu: where the tensors are to lie.
        watch: receives every transfer; None to take no times of them.
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
            yield self._taken(posted)
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
        """Wait for an announcement, and take another if it is there; whether there is any."""
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
                raise WireError(f"{len(values)} values are announced, {len(spec)} described")
            self._text, self._packing = str(text), Packing.of(spec)
        if self._packing.nbytes:
            index = announcement.index
            carry = _watched(self._carry, "receive", index, self._gpu, self._watch)
            self._inbox.post(self._packing.nbytes, carry)
        self._posted.append(_Posted(announcement, values, self._packing))

    def _taken(self, posted: _Posted) -> MicroBatch:
        values, packing = posted.values, posted.packing
        with self._gpu.range("receive"):
            memory = self._inbox.take() if packing.nbytes else self._gpu.empty(0)
            for position, tensor in packing.unpacked(memory, self._gpu):
                values[position] = tensor
        return replace(posted.announcement, values=tuple(values))

    def _carry(self, memory: torch.Tensor, stream: Stream) -> None:
        self._transport.receive(memory.data_ptr(), memory.nbytes, stream.cuda_stream)


def _watched(carry: Carry, kind: Kind, index: int, gpu: Gpu, watch: Watch | None) -> Carry:
    """The same, and `watch` receives the transfer."""
    if watch is None:
        return carry

    def timed(memory: torch.Tensor, stream: Stream) -> None:
        begin, end = gpu.event(timed=True), gpu.event(timed=True)
        begin.record(stream)
        carry(memory, stream)
        end.record(stream)
        watch(kind, index, begin, end)

    return timed


def _text_of(spec: Spec) -> str:
    """A spec as a value that a channel between hosts takes; each byte is a character."""
    return pack_spec(spec).decode("latin-1")


def _spec_of(text: Value) -> Spec:
    """Undo `_text_of`.

    Raises:
        WireError: it is none.
    """
    try:
        return unpack_spec(str(text).encode("latin-1"))
    except UnicodeEncodeError as error:
        raise WireError(f"a micro-batch is announced by {text!r}, not by a spec") from error
