"""The contract of a channel: one directed, bounded, ordered edge between two stages.

A channel has two ends, each held by one stage. Micro-batches flow in streams: `send` any number of
them, then `end` the stream; the receiver's `receive` yields exactly those, in the order sent, and
returns. Any number of streams may follow one another without anything being drained in between.

Depth bounds what is under way, on each end: so many micro-batches may wait to leave the sender, and
so many may have been received ahead. Edges form an acyclic graph, so blocking on a full one cannot
deadlock; the one edge that closes a circle, results going back to the first rank, is the caller's
to bound.

`close` is the orderly end: it waits until everything sent has left, and may be called twice.
`abort` is the other one: it never waits, and whoever is blocked on the channel is released.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pipepar.microbatch import MicroBatch


class Sender(Protocol):
    """The end of a channel that puts micro-batches in."""

    def send(self, microbatch: MicroBatch) -> None:
        """Hand over a micro-batch; blocks only while `depth` of them are under way.

        The tensors may not be changed afterwards; they are released when they have left.

        Raises:
            WireError: a value is of a kind that cannot cross, or the peer is gone.
        """

    def ready(self) -> bool:
        """Whether `send` would not block. Does not wait."""

    def end(self) -> None:
        """Mark the end of a stream. Blocks as `send` does."""

    def close(self) -> None:
        """Wait until everything sent has left, and let go. May be called twice."""

    def abort(self) -> None:
        """Let go at once. Never waits."""


class Receiver(Protocol):
    """The end of a channel that takes micro-batches out."""

    def receive(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches of one stream in the order sent, until its end.

        Tensors on the host stay valid as long as they are referenced. Tensors on a GPU stay valid
        until the next micro-batch is asked for: their memory is then received into again.

        Raises:
            WireError: what arrives does not fit the protocol, or the peer is gone.
        """

    def ready(self) -> bool:
        """Whether the next micro-batch can be taken without waiting."""

    def close(self) -> None:
        """Let go; nothing may be under way. May be called twice."""

    def abort(self) -> None:
        """Let go at once. Never waits."""
