"""One end of an MPI channel: its tags and its requests."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mpi4py import MPI

from pipepar.comm.channels.memory import message_ranges
from pipepar.comm.native._progress import Engine, Lane
from pipepar.errors import WireError

Message: TypeAlias = tuple[list[object], int]
"""The mpi4py buffer specification of a message, and its tag."""

# Seconds after which a native wait returns to Python, which handles signals and then waits again.
_WAIT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class MpiEndpoint:
    """The communicator, the peer and the tags of one end of an MPI channel."""

    comm: MPI.Intracomm
    """The communicator of all channels; each channel has its own tags."""
    peer: int
    """The rank at the other end."""
    tag: int
    """The first tag of the channel, which has `tags(depth)` consecutive tags."""
    depth: int
    """The number of micro-batches that each end may have under way, at least 1."""
    waited: Callable[[], None] = lambda: None
    """Called about ten times a second while this rank waits for the peer."""

    @staticmethod
    def tags(depth: int) -> int:
        """Return the number of tags of a channel: header, spec, and those of the generations."""
        return 2 + 2 * (depth + 1)

    @property
    def header_tag(self) -> int:
        """The tag of headers."""
        return self.tag

    @property
    def spec_tag(self) -> int:
        """The tag of specs."""
        return self.tag + 1

    def payload_tag(self, generation: int) -> int:
        """Return the tag of tensors; generations that are under way together have distinct tags."""
        return self.tag + 2 + generation % (2 * (self.depth + 1))


def messages_of(address: int, nbytes: int, tag: int) -> Iterator[Message]:
    """Yield the messages for the memory of a tensor."""
    for begin, size in message_ranges(address, nbytes):
        yield [MPI.buffer.fromaddress(begin, size), MPI.BYTE], tag


def wait_for(
    lane: Lane, count: int, endpoint: MpiEndpoint, transfer: Literal["sending to", "receiving from"]
) -> None:
    """Wait until a lane has completed tickets.

    Args:
        lane: the lane.
        count: the number of completed tickets to wait for, counted since the lane was created.
        endpoint: the end of the channel, for errors and for `MpiEndpoint.waited`.
        transfer: what the lane does, for errors.

    Raises:
        WireError: MPI reports an error, usually because the peer has ended; a GPU failed to copy
            tensors to the host; or another thread has aborted the channel.
    """
    while not lane.wait(count, _WAIT_SECONDS):
        endpoint.waited()
    what = f"{transfer} rank {endpoint.peer}"
    if lane.error:
        raise WireError(
            f"{what} failed: {MPI.Get_error_string(lane.error)}; "
            "look for the first error of that rank"
        )
    if lane.gate_error:
        raise WireError(
            f"{what} failed: the GPU did not deliver the tensors, CUDA error "
            f"{lane.gate_error}; look for the first CUDA error of this rank"
        )
    if lane.completed < count:
        raise WireError(f"{what} was aborted: the channel is closed")


def cancel(request: MPI.Request) -> None:
    """Cancel a receive that no message will match."""
    if request != MPI.REQUEST_NULL:
        request.Cancel()
        request.Wait()


def leak(memory: object) -> None:
    """Keep an object alive until the process ends, since MPI may still access its memory."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))


class SendQueue:
    """The micro-batches and end markers under way from one end of a channel, at most `depth`.

    Without `query`, `push` starts every message. With it, the engine starts all of them, gated or
    not, as persistent requests: a message that `push` started would overtake those that wait for
    their gates.

    Args:
        endpoint: the end of the channel.
        engine: the progress engine that tests, and starts, the requests.
        query: address of the function that returns whether a gate is open, see `Engine.lane`; 0 if
            no message has a gate.
    """

    def __init__(self, endpoint: MpiEndpoint, engine: Engine, query: int = 0) -> None:
        self._endpoint = endpoint
        self._lane = engine.lane(query)
        self._gated = query != 0
        self._issend = endpoint.comm.Ssend_init if query else endpoint.comm.Issend
        self._isend = endpoint.comm.Send_init if query else endpoint.comm.Isend
        self._under_way: deque[tuple[list[MPI.Request], object]] = deque()
        self._open = True

    def wait_for_room(self) -> None:
        """Wait until fewer than `depth` items are under way, and free those that are sent.

        Raises:
            WireError: the channel is closed, or the peer has ended.
        """
        if not self._open:
            raise WireError(f"the channel to rank {self._endpoint.peer} is closed")
        needed = self._lane.pushed - self._endpoint.depth + 1
        if self._lane.completed < needed:
            wait_for(self._lane, needed, self._endpoint, "sending to")
        self._free_completed()

    def has_room(self) -> bool:
        """Return whether `wait_for_room` would return without waiting."""
        self._lane.poll()
        return self._lane.pushed - self._lane.completed < self._endpoint.depth

    def push(
        self, header: bytes, messages: Sequence[Message] = (), memory: object = None, gate: int = 0
    ) -> None:
        """Send a header and the messages that follow it, in this order.

        Args:
            header: the encoded header, sent in synchronous mode.
            messages: the messages that follow.
            memory: owner of the memory of these messages; referenced until they are sent.
            gate: the argument of `query`; no memory is read before the gate is open. 0 is open.
        """
        endpoint = self._endpoint
        requests = [self._issend([header, MPI.BYTE], endpoint.peer, endpoint.header_tag)]
        for buffer, tag in messages:
            requests.append(self._isend(buffer, endpoint.peer, tag))
        self._under_way.append((requests, (header, messages, memory)))
        self._lane.push([MPI._addressof(request) for request in requests], gate)
        if self._gated:
            self._lane.poll()  # starts what may start, before the next period of the engine

    def close(self) -> None:
        """Wait until everything is sent. May be called twice."""
        if self._open:
            wait_for(self._lane, self._lane.pushed, self._endpoint, "sending to")
            self._open = False
            self._free_completed()

    def abort(self) -> None:
        """Close without waiting; messages that have not started never will."""
        self._open = False
        self._lane.retract()
        leak(tuple(self._under_way))

    def _free_completed(self) -> None:
        while len(self._under_way) > self._lane.pushed - self._lane.completed:
            requests, _ = self._under_way.popleft()
            if self._gated:
                for request in requests:
                    request.Free()
