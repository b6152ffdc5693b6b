"""The MPI channel: micro-batches between two ranks, moved by the progress engine.

Every micro-batch is a header, a spec where the last one no longer holds, and each tensor's own
bytes, sent from where they lie. Two rules make it flow:

- **Posted ahead.** The receiver keeps `depth` headers and the buffers for their tensors posted, so
  that a message has somewhere to land while the stage computes. Headers are sent in synchronous
  mode: they complete when the receiver has posted for them, which is what bounds the channel.
- **Envelopes.** Buffers posted ahead are made for the largest tensors seen so far, so micro-batches
  whose shapes vary find room. What does not fit opens a new *generation* of larger buffers under
  another tag; both sides grow them by the same rule, and the receiver cancels the old ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from mpi4py import MPI

from pipepar.comm.channels import wire
from pipepar.comm.channels.entries import entries_of, microbatch_of
from pipepar.comm.channels.memory import (
    Envelope,
    Layout,
    TensorLayout,
    dense,
    fits,
    grow,
    laid_out,
    plain,
    sizes_of,
    tensor_layouts,
)
from pipepar.comm.channels.mpi_endpoint import (
    Message,
    MpiEndpoint,
    Outgoing,
    cancel,
    leak,
    messages_of,
    wait_for,
)
from pipepar.comm.channels.wire import Header, Kind, Spec
from pipepar.comm.native._progress import Engine
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value

# Without a frame of Python: every tensor that arrives has memory of its own.
_HOST_MEMORY: Final = partial(torch.empty, dtype=torch.uint8)


class MpiSender:
    """The sending end; see `channel.Sender`. Making one is *local*.

    Args:
        endpoint: which channel.
        engine: what moves it.
        query: tells whether a gate is open, see `Engine.lane`; 0 where nothing is gated.
    """

    def __init__(self, endpoint: MpiEndpoint, engine: Engine, query: int = 0) -> None:
        self._endpoint = endpoint
        self._outgoing = Outgoing(endpoint, engine, query)
        self._layout: Layout | None = None
        self._envelope: Envelope = ()
        self._generation = 0
        self._sent = 0

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`."""
        values = tuple(map(plain, entries_of(microbatch)))
        layout = self.layout(values)
        if layout is not self._layout:
            _require_host(values)
        self._outgoing.admit()
        memory = [dense(each, values[each.position]) for each in layout.tensors]  # type: ignore[arg-type]
        self.post(microbatch, layout, memory)

    def layout(self, values: tuple[Value, ...]) -> Layout:
        """What these `plain` values are on the wire; the last layout where that holds. *Local.*

        Raises:
            WireError: a value is of a kind that cannot cross.
        """
        if self._layout is not None and wire.tells(self._layout.spec, values):
            return self._layout
        return Layout.of(tuple(map(wire.describe, values)))

    def admit(self) -> None:
        """Wait for room for one more micro-batch. *Local.*

        Raises:
            WireError: the channel is closed, or the peer is gone.
        """
        self._outgoing.admit()

    def post(
        self,
        microbatch: MicroBatch,
        layout: Layout,
        memory: Sequence[torch.Tensor],
        gate: int = 0,
    ) -> None:
        """Send a micro-batch that was admitted; never waits. *Local.*

        Args:
            microbatch: its index and its program travel in the header.
            layout: what `layout` said of its entries.
            memory: for each tensor of the layout, one whose memory begins with the bytes to travel;
                kept until they have left, and not read before the gate is open.
            gate: what `query` is asked about, valid until it is open; 0 is open.
        """
        announced = b""
        if layout is not self._layout:
            announced = wire.pack_spec(layout.spec)
            self._layout = layout
            if not fits(sizes_of(layout.tensors), self._envelope):
                self._envelope = grow(self._envelope, sizes_of(layout.tensors))
                self._generation += 1
        header = Header.announcing(
            Kind.MICROBATCH,
            microbatch.index,
            self._generation,
            announced,
            microbatch.step.program,
        )
        messages: list[Message] = []
        if announced:
            messages.append(([announced, MPI.BYTE], self._endpoint.spec_tag))
        tag = self._endpoint.payload_tag(self._generation)
        for tensor_layout, tensor in zip(layout.tensors, memory, strict=True):
            messages.extend(messages_of(tensor.data_ptr(), tensor_layout.nbytes, tag))
        self._outgoing.push(header.pack(), messages, memory, gate)
        self._sent += 1

    def ready(self) -> bool:
        """See `Sender.ready`."""
        return self._outgoing.has_room()

    def end(self) -> None:
        """See `Sender.end`."""
        self._outgoing.admit()
        self._outgoing.push(Header.announcing(Kind.END, self._sent, self._generation, b"").pack())
        self._sent = 0

    def close(self) -> None:
        """See `Sender.close`."""
        self._outgoing.close()

    def abort(self) -> None:
        """See `Sender.abort`."""
        self._outgoing.abort()


def _require_host(values: tuple[Value, ...]) -> None:
    for value in values:
        if isinstance(value, torch.Tensor) and not value.is_cpu:
            raise WireError(
                f"a tensor on {value.device} cannot cross between hosts, expected one on the CPU; "
                "call .cpu()"
            )


@dataclass(frozen=True, slots=True)
class _Post:
    """Receives posted ahead, and the memory they land in."""

    requests: list[MPI.Request]
    buffers: list[torch.Tensor]


class MpiReceiver:
    """The receiving end; see `channel.Receiver`. Making one posts its first receives; *local*.

    Args:
        endpoint: which channel.
        engine: what moves it.
        allocate: makes the memory that tensors land in, uint8 of so many bytes.
    """

    def __init__(
        self,
        endpoint: MpiEndpoint,
        engine: Engine,
        allocate: Callable[[int], torch.Tensor] = _HOST_MEMORY,
    ) -> None:
        self._endpoint = endpoint
        self._allocate = allocate
        self._header_lane = engine.lane()
        self._spec_lane = engine.lane()
        self._payload_lane = engine.lane()
        self._headers: deque[tuple[MPI.Request, bytearray]] = deque()
        self._payloads: deque[_Post] = deque()
        self._spec: Spec = ()
        self._tensors: tuple[TensorLayout, ...] = ()
        self._envelope: Envelope = ()
        self._generation = 0
        self._received = 0
        self._open = True
        for _ in range(endpoint.depth):
            self._post_header()

    def receive(self) -> Iterator[MicroBatch]:
        """See `Receiver.receive`."""
        while (header := self._take_header()).kind is Kind.MICROBATCH:
            if header.spec_bytes:
                self._take_spec(header)
            if header.generation != self._generation:
                self._open_generation(header.generation)
            if header.spec_bytes:
                self._require_room()
            microbatch = self._microbatch(header, self._take_values())
            self._received += 1
            self._post_header()
            self._post_payload()
            yield microbatch
        if header.index != self._received:
            raise self._error(f"the stream ends here, but {header.index} micro-batches were sent")
        self._received = 0
        self._post_header()

    def ready(self) -> bool:
        """See `Receiver.ready`."""
        lane = self._header_lane
        lane.poll()
        return lane.pushed - lane.completed < len(self._headers)

    def close(self) -> None:
        """See `Receiver.close`."""
        if self._open:
            self._open = False
            self._header_lane.retract()
            for request, _ in self._headers:
                cancel(request)
            self._headers.clear()
            self._cancel_payloads()

    def abort(self) -> None:
        """See `Receiver.abort`."""
        self._open = False
        for lane in (self._header_lane, self._spec_lane, self._payload_lane):
            lane.retract()
        leak(self._headers)
        leak(self._payloads)

    def _post_header(self) -> None:
        endpoint, data = self._endpoint, bytearray(wire.HEADER_BYTES)
        request = endpoint.comm.Irecv([data, MPI.BYTE], endpoint.peer, endpoint.header_tag)
        self._headers.append((request, data))
        self._header_lane.push([MPI._addressof(request)])

    def _post_payload(self) -> None:
        if not any(self._envelope):
            return
        endpoint, here = self._endpoint, self._endpoint.payload_tag(self._generation)
        buffers = [self._allocate(room) for room in self._envelope]
        requests = [
            endpoint.comm.Irecv(place, endpoint.peer, tag)
            for buffer, room in zip(buffers, self._envelope, strict=True)
            for place, tag in messages_of(buffer.data_ptr(), room, here)
        ]
        self._payloads.append(_Post(requests, buffers))
        self._payload_lane.push([MPI._addressof(request) for request in requests])

    def _take_header(self) -> Header:
        if not self._open:
            raise WireError(f"the channel from rank {self._endpoint.peer} is closed")
        lane = self._header_lane
        wait_for(lane, lane.pushed - len(self._headers) + 1, self._endpoint, "receiving from")
        _, data = self._headers.popleft()
        try:
            return Header.unpack(data)
        except WireError as error:
            raise self._error(str(error)) from error

    def _take_spec(self, header: Header) -> None:
        endpoint, data = self._endpoint, bytearray(header.spec_bytes)
        request = endpoint.comm.Irecv([data, MPI.BYTE], endpoint.peer, endpoint.spec_tag)
        self._spec_lane.push([MPI._addressof(request)])
        wait_for(self._spec_lane, self._spec_lane.pushed, endpoint, "receiving from")
        try:
            self._spec = wire.unpack_spec(header.checked(data))
        except WireError as error:
            raise self._error(str(error)) from error
        self._tensors = tensor_layouts(self._spec)

    def _open_generation(self, generation: int) -> None:
        """Replace the buffers posted ahead by larger ones, under the next generation's tag."""
        self._cancel_payloads()
        self._generation = generation
        self._envelope = grow(self._envelope, sizes_of(self._tensors))
        for _ in range(self._endpoint.depth):
            self._post_payload()

    def _cancel_payloads(self) -> None:
        self._payload_lane.retract()
        for post in self._payloads:
            for request in post.requests:
                cancel(request)
        self._payloads.clear()

    def _require_room(self) -> None:
        sizes = sizes_of(self._tensors)
        if not fits(sizes, self._envelope):
            raise self._error(f"tensors of {sizes} bytes do not fit the envelope {self._envelope}")

    def _take_values(self) -> tuple[Value, ...]:
        values: list[Value] = list(self._spec)  # type: ignore[arg-type]
        for tensor_layout, buffer in zip(self._tensors, self._take_buffers(), strict=True):
            values[tensor_layout.position] = laid_out(tensor_layout, buffer)
        return tuple(values)

    def _microbatch(self, header: Header, entries: tuple[Value, ...]) -> MicroBatch:
        try:
            return microbatch_of(header.index, header.program, entries)
        except WireError as error:
            raise self._error(str(error)) from error

    def _take_buffers(self) -> list[torch.Tensor]:
        if not self._payloads:
            return [self._allocate(0) for _ in self._tensors]
        lane = self._payload_lane
        wait_for(lane, lane.pushed - len(self._payloads) + 1, self._endpoint, "receiving from")
        return self._payloads.popleft().buffers

    def _error(self, message: str) -> WireError:
        return WireError(
            f"from rank {self._endpoint.peer}, micro-batch {self._received}: {message}"
        )
