"""The receiving end of an MPI channel; `mpi_sender` describes the protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from mpi4py import MPI

from pipepar.comm.channels.entries import microbatch_of
from pipepar.comm.channels.header import HEADER_BYTES, Header, Kind
from pipepar.comm.channels.memory import Layout, Sizes, fits, grow, tensor_from_buffer
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint, cancel, leak, messages_of, wait_for
from pipepar.comm.channels.spec import unpack_spec
from pipepar.comm.native._progress import Engine
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value

# A partial is faster than a Python function, and it is called for every tensor.
_HOST_MEMORY: Final = partial(torch.empty, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class _Post:
    """The receives for the tensors of one micro-batch, and their buffers."""

    requests: list[MPI.Request]
    buffers: list[torch.Tensor]


class MpiReceiver:
    """The receiving end; see `channel.Receiver`. The constructor posts receives for headers.

    Args:
        endpoint: this end of the channel.
        engine: the progress engine that tests the requests.
        allocate: returns the buffer of a tensor, uint8 [n], given n.
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
        self._layout = Layout.of(())
        self._buffer_sizes: Sizes = ()
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
            raise self._error(
                f"the stream ends here, but the sender has sent {header.index} micro-batches"
            )
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
        """See `Receiver.abort`. The receives stay posted, so their memory is never freed."""
        self._open = False
        for lane in (self._header_lane, self._spec_lane, self._payload_lane):
            lane.retract()
        leak(self._headers)
        leak(self._payloads)

    def _post_header(self) -> None:
        """Post one more receive of a header."""
        endpoint, data = self._endpoint, bytearray(HEADER_BYTES)
        request = endpoint.comm.Irecv([data, MPI.BYTE], endpoint.peer, endpoint.header_tag)
        self._headers.append((request, data))
        self._header_lane.push([MPI._addressof(request)])

    def _post_payload(self) -> None:
        """Post the receives of one micro-batch in new buffers; do nothing if all are empty."""
        if not any(self._buffer_sizes):
            return
        endpoint, payload_tag = self._endpoint, self._endpoint.payload_tag(self._generation)
        buffers = [self._allocate(nbytes) for nbytes in self._buffer_sizes]
        requests = [
            endpoint.comm.Irecv(message, endpoint.peer, tag)
            for buffer, nbytes in zip(buffers, self._buffer_sizes, strict=True)
            for message, tag in messages_of(buffer.data_ptr(), nbytes, payload_tag)
        ]
        self._payloads.append(_Post(requests, buffers))
        self._payload_lane.push([MPI._addressof(request) for request in requests])

    def _take_header(self) -> Header:
        """Wait for the next header and return it; the caller posts the next receive.

        Raises:
            WireError: the channel is closed, the peer has ended, or the header is damaged.
        """
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
        """Receive the spec that follows a header, and store its layout.

        Raises:
            WireError: the peer has ended, or the spec is damaged.
        """
        endpoint, data = self._endpoint, bytearray(header.spec_bytes)
        request = endpoint.comm.Irecv([data, MPI.BYTE], endpoint.peer, endpoint.spec_tag)
        self._spec_lane.push([MPI._addressof(request)])
        wait_for(self._spec_lane, self._spec_lane.pushed, endpoint, "receiving from")
        try:
            self._layout = Layout.of(unpack_spec(header.checked(data)))
        except WireError as error:
            raise self._error(str(error)) from error

    def _open_generation(self, generation: int) -> None:
        """Cancel the posted receives of tensors, and post others with other buffers and a new tag.

        The sizes of the buffers follow from the layout in use.
        """
        self._cancel_payloads()
        self._generation = generation
        self._buffer_sizes = grow(self._buffer_sizes, self._layout.sizes)
        for _ in range(self._endpoint.depth):
            self._post_payload()

    def _cancel_payloads(self) -> None:
        self._payload_lane.retract()
        for post in self._payloads:
            for request in post.requests:
                cancel(request)
        self._payloads.clear()

    def _require_room(self) -> None:
        """Raise WireError if the tensors of the layout do not fit into the posted buffers."""
        sizes = self._layout.sizes
        if not fits(sizes, self._buffer_sizes):
            raise self._error(
                f"tensors of {sizes} bytes do not fit into buffers of {self._buffer_sizes} bytes"
            )

    def _take_values(self) -> tuple[Value, ...]:
        """Wait for the tensors of a micro-batch, and return all its entries."""
        values: list[Value] = list(self._layout.spec)  # type: ignore[arg-type]
        for tensor_layout, buffer in zip(self._layout.tensors, self._take_buffers(), strict=True):
            values[tensor_layout.position] = tensor_from_buffer(tensor_layout, buffer)
        return tuple(values)

    def _microbatch(self, header: Header, entries: tuple[Value, ...]) -> MicroBatch:
        """Return the micro-batch; raise WireError if its entries are invalid."""
        try:
            return microbatch_of(header.index, header.program, entries)
        except WireError as error:
            raise self._error(str(error)) from error

    def _take_buffers(self) -> list[torch.Tensor]:
        """Wait for the oldest posted receives, and return their buffers.

        If none are posted, all tensors are empty: return empty buffers. The caller posts the next
        receives.
        """
        if not self._payloads:
            return [self._allocate(0) for _ in self._layout.tensors]
        lane = self._payload_lane
        wait_for(lane, lane.pushed - len(self._payloads) + 1, self._endpoint, "receiving from")
        return self._payloads.popleft().buffers

    def _error(self, message: str) -> WireError:
        """Return an error that names the peer and the number of the next micro-batch."""
        return WireError(
            f"from rank {self._endpoint.peer}, micro-batch {self._received}: {message}"
        )
