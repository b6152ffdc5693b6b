"""A channel between two threads of one process: a bounded queue behind the real contract."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from pipepar.comm.channels import wire
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch


class InprocChannel:
    """Both ends of a channel; hand one thread the sender's methods, the other the receiver's.

    Args:
        depth: how many micro-batches may be under way, at least 1.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._queue: deque[MicroBatch | None] = deque()  # None ends a stream
        self._changed = threading.Condition()
        self._aborted = False

    def send(self, microbatch: MicroBatch) -> None:
        """See `Sender.send`."""
        for value in microbatch.values:
            wire.describe(value)
        self._put(microbatch)

    def end(self) -> None:
        """See `Sender.end`."""
        self._put(None)

    def receive(self) -> Iterator[MicroBatch]:
        """See `Receiver.receive`."""
        while (item := self._take()) is not None:
            yield item

    def ready(self) -> bool:
        """See `Receiver.ready`."""
        return bool(self._queue)

    def close(self) -> None:
        """See `Sender.close`; what was sent has already left."""

    def abort(self) -> None:
        """See `Sender.abort`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def _put(self, item: MicroBatch | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or len(self._queue) < self._depth)
            self._check()
            self._queue.append(item)
            self._changed.notify_all()

    def _take(self) -> MicroBatch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or bool(self._queue))
            self._check()
            item = self._queue.popleft()
            self._changed.notify_all()
            return item

    def _check(self) -> None:
        if self._aborted:
            raise WireError("the channel was aborted by the other stage")
