"""The NCCL communicators of a rank: one for each edge between two GPUs.

A communicator runs its operations in the order of the calls, whatever their CUDA streams, so each
edge has its own. Starting one, its first use and closing it are collective over its two ranks. All
ranks process the edges in one global order, so these steps cannot deadlock.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeAlias

from pipepar.comm.gpu.cuda import Gpu, Stream, wait_for_event
from pipepar.comm.gpu.nccl import Communicator, Nccl
from pipepar.comm.group.group import Group
from pipepar.comm.group.timeout import deadline
from pipepar.errors import WireError

Pair: TypeAlias = tuple[int, int]
"""The ranks of the producer and of the consumer."""

Abort: TypeAlias = Callable[[str], object]
"""Ends the job; receives the report to print."""

# Timeout for connecting one edge: NCCL loads its kernels and searches for networks, which takes
# seconds, and longer on a busy file system.
_PATIENCE: Final = 120.0
# Interval of the checks for asynchronous errors.
_LOOK_SECONDS: Final = 0.5
# ncclCommAbort hangs if the driver hangs.
_ABORT_SECONDS: Final = 1.0


class Communicators(Mapping[int, "EdgeTransport"]):
    """The communicators of this rank, by channel id; created by `start`.

    A thread checks them for asynchronous errors, and raises `WireError` if it finds one.
    """

    def __init__(
        self, communicators: Mapping[int, Communicator], pairs: Mapping[int, Pair]
    ) -> None:
        self._communicators = communicators
        self._pairs = pairs
        self._transports = {
            channel: EdgeTransport(each, self._release) for channel, each in communicators.items()
        }
        self._in_use = len(communicators)
        self._closed = threading.Event()
        if communicators:
            threading.Thread(target=self._monitor, name="pipepar-nccl", daemon=True).start()

    @classmethod
    def start(
        cls, group: Group, pairs: Mapping[int, Pair], gpu: Gpu | None, abort: Abort
    ) -> Communicators:
        """Connect the GPUs at the two ends of each channel. *Collective.*

        Args:
            group: all ranks.
            pairs: the ranks that each channel connects, by channel id; the same on every rank.
            gpu: the GPU of this rank; None if no channel ends at this rank's GPU.
            abort: ends the job; receives the report to print.

        Raises:
            WireError: NCCL is missing or reports an error. Other ranks raise PeerError, or end the
                job after a timeout.
        """
        own = {channel: pair for channel, pair in pairs.items() if group.rank in pair}
        ordered = sorted(own, key=lambda channel: (own[channel][0] % 2, own[channel], channel))
        nccl = group.together(lambda: Nccl.load() if own else None)
        ids = _exchange_ids(group, nccl, own)
        started: dict[int, Communicator] = {}
        if nccl is not None and gpu is not None:
            stream = gpu.stream()
            for channel in ordered:
                pair = own[channel]
                with _start_deadline(group, pair, abort):
                    edge = f"edge rank {pair[0]} -> rank {pair[1]}"
                    end = pair.index(group.rank)
                    started[channel] = Communicator.start(nccl, ids[channel], end, 2, edge)
                    _warm_up(started[channel], gpu, stream, sends=end == 0)
        return cls(started, own)

    def __getitem__(self, channel: int) -> EdgeTransport:
        """Return the transport of a channel."""
        return self._transports[channel]

    def __iter__(self) -> Iterator[int]:
        """Iterate over the channel ids."""
        return iter(self._transports)

    def __len__(self) -> int:
        """Return the number of communicators."""
        return len(self._transports)

    def close(self) -> None:
        """Stop checking for errors."""
        self._closed.set()

    def abort(self) -> None:
        """Stop the kernels that wait for another rank. Returns within `_ABORT_SECONDS`."""
        self._closed.set()
        thread = threading.Thread(target=self._abort, daemon=True)
        thread.start()
        thread.join(_ABORT_SECONDS)

    def _abort(self) -> None:
        for communicator in self._communicators.values():
            communicator.abort()

    def _release(self) -> None:
        """Close all communicators, in the global order, when the last channel is closed."""
        self._in_use -= 1
        if self._in_use == 0:
            self._closed.set()
            for communicator in self._communicators.values():
                communicator.close()

    def _monitor(self) -> None:
        """Query NCCL for asynchronous errors, such as those of a network."""
        while not self._closed.wait(_LOOK_SECONDS):
            for channel, communicator in self._communicators.items():
                if problem := communicator.problem():
                    pair = self._pairs[channel]
                    raise WireError(
                        f"edge rank {pair[0]} -> rank {pair[1]} broke: {problem}; look for the "
                        "first error of either rank, and run with NCCL_DEBUG=INFO to see more"
                    )


class EdgeTransport:
    """Sends and receives through the communicator of one channel; a `nccl_channel.P2PTransport`.

    The communicators of a rank are closed together, so `close` only counts.
    """

    def __init__(self, communicator: Communicator, release: Callable[[], None]) -> None:
        self.send = communicator.send
        self.receive = communicator.receive
        self._release = release
        self._open = True

    def close(self) -> None:
        """Count this channel as closed; the last channel of a rank frees all. *Collective.*

        May be called twice.
        """
        if self._open:
            self._open = False
            self._release()


def _exchange_ids(group: Group, nccl: Nccl | None, own: Mapping[int, Pair]) -> dict[int, bytes]:
    """Return the ids that the producers created, by channel id. *Collective.*"""
    created = group.together(
        lambda: [
            [channel, nccl.unique_id().hex()]
            for channel, pair in own.items()
            if nccl and pair[0] == group.rank
        ]
    )
    texts = group.all_gather(json.dumps(created))
    return {
        channel: bytes.fromhex(digits) for text in texts for channel, digits in json.loads(text)
    }


@contextmanager
def _start_deadline(group: Group, pair: Pair, abort: Abort) -> Iterator[None]:
    """Abort the job if the body takes longer than `_PATIENCE`."""
    peer = pair[1 - pair.index(group.rank)]
    message = (
        f"rank {group.rank} on {group.host} could not connect its GPU to that of rank {peer} on "
        f"{group.hosts[peer]} (edge rank {pair[0]} -> rank {pair[1]}) within {_PATIENCE:.0f} s; "
        f"see that rank {peer} is running, name the network with NCCL_SOCKET_IFNAME or "
        "NCCL_IB_HCA, and run with NCCL_DEBUG=INFO to see where NCCL stops"
    )
    with deadline(abort, _PATIENCE, message):
        yield


def _warm_up(communicator: Communicator, gpu: Gpu, stream: Stream, sends: bool) -> None:
    """Transfer one byte, so that NCCL connects the two ranks now."""
    memory, done = gpu.empty(1), gpu.event()
    transfer = communicator.send if sends else communicator.receive
    done.record(gpu.compute)
    stream.wait_event(done)
    transfer(memory.data_ptr(), memory.nbytes, stream.cuda_stream)
    done.record(stream)
    wait_for_event(done)
