"""The channel between two threads of one process: a bounded queue."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from pipepar.comm.channels.entries import entries_of
from pipepar.comm.channels.spec import describe
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch


class InprocChannel:
    """A channel between threads.

    Args:
        depth: the number of micro-batches that may be under way, at least 1.

    Attributes:
        sender: the sending end.
        receiver: the receiving end.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._queue: deque[MicroBatch | None] = deque()  # None: end of a stream
        self._changed = threading.Condition()
        self._aborted = False
        self.sender = InprocSender(self)
        self.receiver = InprocReceiver(self)

    def put(self, item: MicroBatch | None) -> None:
        """Append a micro-batch, or None for the end of a stream; wait while the queue is full."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._queue) < self._depth)
            self._check()
            self._queue.append(item)
            self._changed.notify_all()

    def take(self) -> MicroBatch | None:
        """Remove and return the next item of `put`; wait while the queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or bool(self._queue))
            self._check()
            item = self._queue.popleft()
            self._changed.notify_all()
            return item

    def is_empty(self) -> bool:
        """Return whether `take` would wait."""
        return not self._queue

    def has_room(self) -> bool:
        """Return whether `put` would return without waiting."""
        return len(self._queue) < self._depth

    def abort(self) -> None:
        """Abort both ends; see `Sender.abort`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._aborted:
            raise WireError("the channel was aborted by the other stage")


class InprocSender:
    """The sending end; see `channel.Sender`."""

    def __init__(self, channel: InprocChannel) -> None:
        self._channel = channel

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`; refuses the values that other channels refuse."""
        for value in entries_of(microbatch):
            describe(value)
        self._channel.put(microbatch)

    def ready(self) -> bool:
        """See `Sender.ready`."""
        return self._channel.has_room()

    def end(self) -> None:
        """See `Sender.end`."""
        self._channel.put(None)

    def close(self) -> None:
        """See `Sender.close`."""

    def abort(self) -> None:
        """See `Sender.abort`."""
        self._channel.abort()


class InprocReceiver:
    """The receiving end; see `channel.Receiver`."""

    def __init__(self, channel: InprocChannel) -> None:
        self._channel = channel

    def receive(self) -> Iterator[MicroBatch]:
        """See `Receiver.receive`."""
        while (item := self._channel.take()) is not None:
            yield item

    def ready(self) -> bool:
        """See `Receiver.ready`."""
        return not self._channel.is_empty()

    def close(self) -> None:
        """See `Receiver.close`."""

    def abort(self) -> None:
        """See `Receiver.abort`."""
        self._channel.abort()
