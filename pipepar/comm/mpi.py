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
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from mpi4py import MPI

from pipepar.comm import wire
from pipepar.comm.edge import Edge, cancel, leak, mpi_buffers, wait_for
from pipepar.comm.memory import (
    Envelope,
    Leg,
    core,
    fits,
    grow,
    laid_out,
    legs_of,
    plain,
    sizes_of,
)
from pipepar.comm.native._progress import Engine
from pipepar.comm.wire import Header, Kind, Spec
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value


class MpiSender:
    """The sending end; see `channel.Sender`. Making one is *local*."""

    def __init__(self, edge: Edge, engine: Engine) -> None:
        self._edge = edge
        self._lane = engine.lane()
        self._under_way: deque[tuple[object, ...]] = deque()
        self._spec: Spec | None = None
        self._legs: tuple[Leg, ...] = ()
        self._envelope: Envelope = ()
        self._generation = 0
        self._sent = 0
        self._open = True

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`."""
        values = tuple(map(plain, microbatch.values))
        spec = tuple(map(wire.describe, values))
        announced = b""
        if self._spec is None or not wire.same(spec, self._spec):
            announced = wire.pack_spec(spec)
            self._spec, self._legs = spec, legs_of(spec)
            if not fits(sizes_of(self._legs), self._envelope):
                self._envelope = grow(self._envelope, sizes_of(self._legs))
                self._generation += 1
        self._admit()
        self._sent += 1
        self._post(Kind.MICROBATCH, microbatch.index, announced, values)

    def end(self) -> None:
        """See `Sender.end`."""
        self._admit()
        self._post(Kind.END, self._sent, b"", None)
        self._sent = 0

    def close(self) -> None:
        """See `Sender.close`."""
        if self._open:
            wait_for(self._lane, self._lane.pushed, self._edge, "sending to")
            self._open = False
            self._under_way.clear()

    def abort(self) -> None:
        """See `Sender.abort`."""
        self._open = False
        self._lane.retract()
        leak(self._under_way)

    def _admit(self) -> None:
        """Wait for room, and let go of what has left."""
        if not self._open:
            raise WireError(f"the channel to rank {self._edge.peer} is closed")
        room = self._lane.pushed - self._edge.depth + 1
        if self._lane.completed < room:
            wait_for(self._lane, room, self._edge, "sending to")
        while len(self._under_way) > self._lane.pushed - self._lane.completed:
            self._under_way.popleft()

    def _post(
        self, kind: Kind, index: int, announced: bytes, values: tuple[Value, ...] | None
    ) -> None:
        comm, edge = self._edge.comm, self._edge
        header = Header.announcing(kind, index, self._generation, announced).pack()
        requests = [comm.Issend([header, MPI.BYTE], edge.peer, edge.header_tag)]
        kept: list[object] = [header, announced, requests]
        if announced:
            requests.append(comm.Isend([announced, MPI.BYTE], edge.peer, edge.spec_tag))
        if values is not None:
            tag = edge.payload_tag(self._generation)
            for leg in self._legs:
                tensor: torch.Tensor = values[leg.position]  # type: ignore[assignment]
                memory = core(tensor).contiguous() if leg.has_holes else tensor
                kept.append(memory)
                requests.extend(
                    comm.Isend(span, edge.peer, tag)
                    for span in mpi_buffers(memory.data_ptr(), leg.nbytes)
                )
        self._under_way.append(tuple(kept))
        self._lane.push([MPI._addressof(request) for request in requests])


@dataclass(frozen=True, slots=True)
class _Post:
    """Receives posted ahead, and the memory they land in."""

    requests: list[MPI.Request]
    buffers: list[torch.Tensor]


class MpiReceiver:
    """The receiving end; see `channel.Receiver`. Making one posts its first receives; *local*."""

    def __init__(self, edge: Edge, engine: Engine) -> None:
        self._edge = edge
        self._header_lane = engine.lane()
        self._spec_lane = engine.lane()
        self._payload_lane = engine.lane()
        self._headers: deque[tuple[MPI.Request, bytearray]] = deque()
        self._payloads: deque[_Post] = deque()
        self._spec: Spec = ()
        self._legs: tuple[Leg, ...] = ()
        self._envelope: Envelope = ()
        self._generation = 0
        self._received = 0
        self._open = True
        for _ in range(edge.depth):
            self._post_header()

    def receive(self) -> Iterator[MicroBatch]:
        """See `Receiver.receive`."""
        while (header := self._take_header()).kind is Kind.MICROBATCH:
            if header.spec_bytes:
                self._take_spec(header)
            if header.generation != self._generation:
                self._open_generation(header.generation)
            values = self._take_values()
            self._received += 1
            self._post_header()
            self._post_payload()
            yield MicroBatch(header.index, values)
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
        edge, data = self._edge, bytearray(wire.HEADER_BYTES)
        request = edge.comm.Irecv([data, MPI.BYTE], edge.peer, edge.header_tag)
        self._headers.append((request, data))
        self._header_lane.push([MPI._addressof(request)])

    def _post_payload(self) -> None:
        if not any(self._envelope):
            return
        edge, tag = self._edge, self._edge.payload_tag(self._generation)
        buffers = [torch.empty(room, dtype=torch.uint8) for room in self._envelope]
        requests = [
            edge.comm.Irecv(span, edge.peer, tag)
            for buffer, room in zip(buffers, self._envelope, strict=True)
            for span in mpi_buffers(buffer.data_ptr(), room)
        ]
        self._payloads.append(_Post(requests, buffers))
        self._payload_lane.push([MPI._addressof(request) for request in requests])

    def _take_header(self) -> Header:
        if not self._open:
            raise WireError(f"the channel from rank {self._edge.peer} is closed")
        lane = self._header_lane
        wait_for(lane, lane.pushed - len(self._headers) + 1, self._edge, "receiving from")
        _, data = self._headers.popleft()
        try:
            return Header.unpack(data)
        except WireError as error:
            raise self._error(str(error)) from error

    def _take_spec(self, header: Header) -> None:
        edge, data = self._edge, bytearray(header.spec_bytes)
        request = edge.comm.Irecv([data, MPI.BYTE], edge.peer, edge.spec_tag)
        self._spec_lane.push([MPI._addressof(request)])
        wait_for(self._spec_lane, self._spec_lane.pushed, edge, "receiving from")
        try:
            self._spec = wire.unpack_spec(header.checked(data))
        except WireError as error:
            raise self._error(str(error)) from error
        self._legs = legs_of(self._spec)

    def _open_generation(self, generation: int) -> None:
        """Replace the buffers posted ahead by larger ones, under the next generation's tag."""
        self._cancel_payloads()
        self._generation = generation
        self._envelope = grow(self._envelope, sizes_of(self._legs))
        for _ in range(self._edge.depth):
            self._post_payload()

    def _cancel_payloads(self) -> None:
        self._payload_lane.retract()
        for post in self._payloads:
            for request in post.requests:
                cancel(request)
        self._payloads.clear()

    def _take_values(self) -> tuple[Value, ...]:
        sizes = sizes_of(self._legs)
        if not fits(sizes, self._envelope):
            raise self._error(f"tensors of {sizes} bytes do not fit the envelope {self._envelope}")
        values: list[Value] = list(self._spec)  # type: ignore[arg-type]
        for leg, buffer in zip(self._legs, self._take_buffers(), strict=True):
            values[leg.position] = laid_out(leg, buffer)
        return tuple(values)

    def _take_buffers(self) -> list[torch.Tensor]:
        if not self._payloads:
            return [torch.empty(0, dtype=torch.uint8) for _ in self._legs]
        lane = self._payload_lane
        wait_for(lane, lane.pushed - len(self._payloads) + 1, self._edge, "receiving from")
        return self._payloads.popleft().buffers

    def _error(self, message: str) -> WireError:
        return WireError(f"from rank {self._edge.peer}, micro-batch {self._received}: {message}")
