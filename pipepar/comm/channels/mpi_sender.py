"""The sending end of the MPI channel, which the progress engine moves.

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

from collections.abc import Sequence

import torch
from mpi4py import MPI

from pipepar.comm.channels.entries import entries_of
from pipepar.comm.channels.header import Header, Kind
from pipepar.comm.channels.memory import (
    Envelope,
    Layout,
    dense,
    fits,
    grow,
    plain,
    sizes_of,
)
from pipepar.comm.channels.mpi_endpoint import (
    Message,
    MpiEndpoint,
    Outgoing,
    messages_of,
)
from pipepar.comm.channels.spec import describe, pack_spec, tells
from pipepar.comm.native._progress import Engine
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value


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
        """What these `plain` values are on the wire; the last layout where that holds.

        Raises:
            WireError: a value is of a kind that cannot cross.
        """
        if self._layout is not None and tells(self._layout.spec, values):
            return self._layout
        return Layout.of(tuple(map(describe, values)))

    def admit(self) -> None:
        """Wait for room for one more micro-batch.

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
        """Send a micro-batch that was admitted; never waits.

        Args:
            microbatch: its index and its program travel in the header.
            layout: what `layout` said of its entries.
            memory: for each tensor of the layout, one whose memory begins with the bytes to travel;
                kept until they have left, and not read before the gate is open.
            gate: what `query` is asked about, valid until it is open; 0 is open.
        """
        announced = b""
        if layout is not self._layout:
            announced = pack_spec(layout.spec)
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
