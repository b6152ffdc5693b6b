"""The contract of a channel: one directed, bounded, ordered edge between two ranks or threads.

A channel has two ends, a `Sender` and a `Receiver`. Micro-batches form streams: the sender calls
`send` any number of times, then `end`. One call of `receive` yields the micro-batches of one stream
in the order sent. The sender may begin a stream before the receiver has reached the end of the
stream before it.

The depth bounds each end: `depth` micro-batches may wait at the sender, and `depth` may be received
ahead of the stage. Channels between stages form no cycle, so a blocking `send` cannot cause a
deadlock. The channel that returns results to the source closes a cycle. Its users must limit
the number of micro-batches under way; see `engine/wiring.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pipepar.microbatch import MicroBatch


class Sender(Protocol):
    """The sending end of a channel."""

    def send(self, microbatch: MicroBatch) -> None:
        """Send a micro-batch; block while `depth` micro-batches and end markers are under way.

        The sender references the tensors until they are sent. The caller must not change them
        after this call.

        Args:
            microbatch: dense, unquantized tensors, and values of the other types of `Value`.

        Raises:
            WireError: a value cannot be sent, the channel is closed, or the peer has ended.
        """

    def ready(self) -> bool:
        """Return whether `send` would return without blocking. Does not wait."""

    def end(self) -> None:
        """Send the end marker of a stream; block as `send` does.

        Raises:
            WireError: the channel is closed, or the peer has ended.
        """

    def close(self) -> None:
        """Wait until everything is sent, then free this end. May be called twice.

        In a channel between threads it does nothing.

        Raises:
            WireError: the peer has ended, or another thread has aborted the channel.
        """

    def abort(self) -> None:
        """Close the channel without waiting. Other threads blocked on it raise WireError."""


class Receiver(Protocol):
    """The receiving end of a channel."""

    def receive(self) -> Iterator[MicroBatch]:
        """Receive one stream.

        Tensors on the host stay valid as long as they are referenced. Tensors on a GPU stay valid
        until the caller requests the next micro-batch, because their memory is then reused.

        Yields:
            The micro-batches of the stream, in the order sent.

        Raises:
            WireError: the data violate the protocol, the channel is closed, or the peer has ended.
        """

    def ready(self) -> bool:
        """Return whether the next micro-batch, or the end marker, has begun to arrive.

        Does not wait. `receive` may still wait for the data of the micro-batch.
        """

    def close(self) -> None:
        """Free this end; no micro-batch may be under way. May be called twice.

        In a channel between threads it does nothing.
        """

    def abort(self) -> None:
        """Close the channel without waiting. Other threads blocked on it raise WireError."""
