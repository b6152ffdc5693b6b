"""One MPI channel's place among all those of a job, and the requests on it."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from mpi4py import MPI

from pipepar.comm.channels.memory import message_ranges
from pipepar.comm.native._progress import Engine, Lane
from pipepar.errors import WireError

Message: TypeAlias = tuple[list[object], int]
"""What MPI sends or receives, as an mpi4py buffer specification, and its tag."""

# A native wait returns to Python this often, so that signals are handled.
_WAIT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class MpiEndpoint:
    """The place of one channel among all those of a job, as seen from one of its ends."""

    comm: MPI.Intracomm
    """The communicator that all channels share; each has tags of its own."""
    peer: int
    """Rank at the other end."""
    tag: int
    """First of the channel's tags; it owns `tags(depth)` of them."""
    depth: int
    """How many micro-batches each end may have under way, at least 1."""
    waited: Callable[[], None] = lambda: None
    """Called every now and then while this rank waits for the peer."""

    @staticmethod
    def tags(depth: int) -> int:
        """Tags a channel needs: header, spec, and one for each generation that may be under way."""
        return 2 + 2 * (depth + 1)

    @property
    def header_tag(self) -> int:
        """Tag of the headers."""
        return self.tag

    @property
    def spec_tag(self) -> int:
        """Tag of the specs."""
        return self.tag + 1

    def payload_tag(self, generation: int) -> int:
        """Tag of the tensors; never that of another generation which may still be under way."""
        return self.tag + 2 + generation % (2 * (self.depth + 1))


def messages_of(address: int, nbytes: int, tag: int) -> Iterator[Message]:
    """The messages that a tensor's memory travels in, a piece each."""
    for begin, size in message_ranges(address, nbytes):
        yield [MPI.buffer.fromaddress(begin, size), MPI.BYTE], tag


class Direction(Enum):
    """Where the messages of a lane go; the value stands before the peer's rank in an error."""

    OUT = "sending to"
    IN = "receiving from"


def wait_for(lane: Lane, count: int, endpoint: MpiEndpoint, direction: Direction) -> None:
    """Wait until a lane has completed that many tickets.

    Raises:
        WireError: MPI reports an error, most often that the peer is gone; a GPU did not deliver
            what was to be sent; or the channel was aborted by another thread.
    """
    while not lane.wait(count, _WAIT_SECONDS):
        endpoint.waited()
    transfer = f"{direction.value} rank {endpoint.peer}"
    if lane.error:
        raise WireError(
            f"{transfer} failed: {MPI.Get_error_string(lane.error)}; "
            "look for the first error of that rank"
        )
    if lane.gate_error:
        raise WireError(
            f"{transfer} failed: the GPU did not deliver the tensors, CUDA error "
            f"{lane.gate_error}; look for the first CUDA error of this rank"
        )
    if lane.completed < count:
        raise WireError(f"{transfer} was given up: the channel is closed")


def cancel(request: MPI.Request) -> None:
    """Take a receive back that nothing will match."""
    if request != MPI.REQUEST_NULL:
        request.Cancel()
        request.Wait()


def leak(memory: object) -> None:
    """Never free what MPI may still read or write, however this process goes on."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))


class Outgoing:
    """Messages on their way out of an endpoint: headers and what follows, at most `depth`.

    Without a query every message starts here. With one the engine starts them all, gated or not, as
    persistent requests: what started here would overtake what still waits for its gate.

    Args:
        endpoint: which one.
        engine: what moves it.
        query: tells whether a gate is open, see `Engine.lane`; 0 where nothing is gated.
    """

    def __init__(self, endpoint: MpiEndpoint, engine: Engine, query: int = 0) -> None:
        self._endpoint = endpoint
        self._lane = engine.lane(query)
        self._gated = query != 0
        self._issend = endpoint.comm.Ssend_init if query else endpoint.comm.Issend
        self._isend = endpoint.comm.Send_init if query else endpoint.comm.Isend
        self._under_way: deque[tuple[list[MPI.Request], object]] = deque()
        self._open = True

    def admit(self) -> None:
        """Wait for room for one more, and let go of what has left.

        Raises:
            WireError: the channel is closed, or the peer is gone.
        """
        if not self._open:
            raise WireError(f"the channel to rank {self._endpoint.peer} is closed")
        room = self._lane.pushed - self._endpoint.depth + 1
        if self._lane.completed < room:
            wait_for(self._lane, room, self._endpoint, Direction.OUT)
        self._let_go()

    def has_room(self) -> bool:
        """Whether `admit` would not wait."""
        self._lane.poll()
        return self._lane.pushed - self._lane.completed < self._endpoint.depth

    def push(
        self, header: bytes, messages: Sequence[Message] = (), memory: object = None, gate: int = 0
    ) -> None:
        """Send a header and what follows it, in this order.

        Args:
            header: sent in synchronous mode.
            messages: what follows.
            memory: owns what these read; kept, as they are, until all have left.
            gate: what the query is asked about before anything is read; 0 is open.
        """
        endpoint = self._endpoint
        requests = [self._issend([header, MPI.BYTE], endpoint.peer, endpoint.header_tag)]
        for buffer, tag in messages:
            requests.append(self._isend(buffer, endpoint.peer, tag))
        self._under_way.append((requests, (header, messages, memory)))
        self._lane.push([MPI._addressof(request) for request in requests], gate)
        if self._gated:
            self._lane.poll()  # what may start does so at once

    def close(self) -> None:
        """Wait until everything has left; may be called twice."""
        if self._open:
            wait_for(self._lane, self._lane.pushed, self._endpoint, Direction.OUT)
            self._open = False
            self._let_go()

    def abort(self) -> None:
        """Let go at once; what has not been started never will be."""
        self._open = False
        self._lane.retract()
        leak(tuple(self._under_way))

    def _let_go(self) -> None:
        while len(self._under_way) > self._lane.pushed - self._lane.completed:
            requests, _ = self._under_way.popleft()
            if self._gated:
                for request in requests:
                    request.Free()
