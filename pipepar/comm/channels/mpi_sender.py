"""The sending end of an MPI channel, and the protocol of the channel.

A micro-batch is sent as a header, a spec if it differs from the last one, and the bytes of each
tensor, read from the tensor's own memory if it has no holes. Two rules make transfers overlap with
computing:

- **Receives are posted ahead.** The receiver posts receives for `depth` headers and their tensors,
  so messages arrive while the stage computes. Headers are sent in synchronous mode: such a send
  completes when the receiver has posted the receive. That bounds the channel.
- **Buffers have the size of the largest tensors so far**, so smaller tensors fit. Tensors that do
  not fit (see `memory.fits`) begin a new *generation* of buffers under another tag, and the
  receiver cancels the old receives. Both ends compute the sizes by the same rule, `memory.grow`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mpi4py import MPI

from pipepar.comm.channels.entries import entries_of
from pipepar.comm.channels.header import Header, Kind
from pipepar.comm.channels.memory import Layout, Sizes, dense, fits, grow, plain
from pipepar.comm.channels.mpi_endpoint import Message, MpiEndpoint, SendQueue, messages_of
from pipepar.comm.channels.spec import describe, matches_spec, pack_spec
from pipepar.comm.native._progress import Engine
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, Value


class MpiSender:
    """The sending end; see `channel.Sender`.

    Args:
        endpoint: this end of the channel.
        engine: the progress engine that tests the requests.
        query: address of the function that returns whether a gate is open, see `Engine.lane`; 0 if
            no message has a gate.
    """

    def __init__(self, endpoint: MpiEndpoint, engine: Engine, query: int = 0) -> None:
        self._endpoint = endpoint
        self._queue = SendQueue(endpoint, engine, query)
        self._layout: Layout | None = None
        self._buffer_sizes: Sizes = ()
        self._generation = 0
        self._sent = 0

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`.

        Tensors must be on the CPU; this is checked only if the layout differs from the last one.
        """
        values = tuple(map(plain, entries_of(microbatch)))
        layout = self.layout(values)
        if layout is not self._layout:
            _require_host(values)
        self._queue.wait_for_room()
        memory = [dense(each, values[each.position]) for each in layout.tensors]  # type: ignore[arg-type]
        self.post(microbatch, layout, memory)

    def layout(self, values: tuple[Value, ...]) -> Layout:
        """Return the layout of some values: the very object posted last, if it matches them.

        Args:
            values: entries of a micro-batch, each passed through `plain`.

        Raises:
            WireError: a value cannot be sent.
        """
        if self._layout is not None and matches_spec(self._layout.spec, values):
            return self._layout
        return Layout.of(tuple(map(describe, values)))

    def admit(self) -> None:
        """Wait until fewer than `depth` micro-batches and end markers are under way.

        Raises:
            WireError: the channel is closed, or the peer has ended.
        """
        self._queue.wait_for_room()

    def post(
        self, microbatch: MicroBatch, layout: Layout, memory: Sequence[torch.Tensor], gate: int = 0
    ) -> None:
        """Send a micro-batch without waiting; `admit` must have been called for it.

        Args:
            microbatch: the source of the index and the program in the header.
            layout: the result of `layout` for the micro-batch's entries.
            memory: for each tensor of the layout, a tensor whose memory begins with the bytes to
                send; referenced until they are sent, and not read before the gate is open.
            gate: the argument of `query`, valid until the gate is open; 0 for no gate.

        Raises:
            WireError: the spec is too long.
        """
        spec = b""
        if layout is not self._layout:
            spec = pack_spec(layout.spec)
            self._layout = layout
            if not fits(layout.sizes, self._buffer_sizes):
                self._buffer_sizes = grow(self._buffer_sizes, layout.sizes)
                self._generation += 1
        header = Header.announcing(
            Kind.MICROBATCH, microbatch.index, self._generation, spec, microbatch.step.program
        )
        messages: list[Message] = []
        if spec:
            messages.append(([spec, MPI.BYTE], self._endpoint.spec_tag))
        tag = self._endpoint.payload_tag(self._generation)
        for tensor_layout, tensor in zip(layout.tensors, memory, strict=True):
            messages.extend(messages_of(tensor.data_ptr(), tensor_layout.nbytes, tag))
        self._queue.push(header.pack(), messages, memory, gate)
        self._sent += 1

    def ready(self) -> bool:
        """See `Sender.ready`."""
        return self._queue.has_room()

    def end(self) -> None:
        """See `Sender.end`."""
        self._queue.wait_for_room()
        self._queue.push(Header.announcing(Kind.END, self._sent, self._generation, b"").pack())
        self._sent = 0

    def close(self) -> None:
        """See `Sender.close`."""
        self._queue.close()

    def abort(self) -> None:
        """See `Sender.abort`. The memory of messages under way is never freed."""
        self._queue.abort()


def _require_host(values: tuple[Value, ...]) -> None:
    """Raise WireError if a tensor is not on the CPU."""
    for value in values:
        if isinstance(value, torch.Tensor) and not value.is_cpu:
            raise WireError(
                f"a tensor on {value.device} cannot be sent between hosts, expected one on the "
                "CPU; call .cpu()"
            )
