"""A rank's NCCL communicators: one for each edge between two GPUs, started and watched together.

One communicator does everything that it is given in one order, whatever the CUDA stream; so every
edge has its own. The first use of one is a meeting of both ranks: all ranks go through the edges in
one order, so that ranks cannot wait for each other in a circle.
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
"""Producer and consumer."""

Abort: TypeAlias = Callable[[str], object]
"""Ends the job, given a report."""

# Loading NCCL's kernels and finding the network takes seconds, on a busy file system many.
_PATIENCE: Final = 120.0
_LOOK_SECONDS: Final = 0.5
# Where the driver hangs, so does an abort.
_ABORT_SECONDS: Final = 1.0


class Communicators(Mapping[int, "Held"]):
    """Those of this rank, by channel; made by `start`. A failure of one is raised in a thread."""

    def __init__(
        self, communicators: Mapping[int, Communicator], pairs: Mapping[int, Pair]
    ) -> None:
        self._communicators = communicators
        self._pairs = pairs
        self._held = {at: Held(each, self._let_go) for at, each in communicators.items()}
        self._in_use = len(communicators)
        self._closed = threading.Event()
        if communicators:
            threading.Thread(target=self._watch, name="pipepar-nccl", daemon=True).start()

    @classmethod
    def start(
        cls, group: Group, pairs: Mapping[int, Pair], gpu: Gpu | None, abort: Abort
    ) -> Communicators:
        """Connect the GPUs at the ends of channels. *Collective*; the same pairs on every rank.

        Args:
            group: all ranks.
            pairs: the ranks that each channel connects, by the channel's id.
            gpu: this rank's; None where it is the end of none of them.
            abort: ends the job, given a report.

        Raises:
            WireError: NCCL is not there, or says that it cannot; on other ranks PeerError, or the
                job is ended once they have waited too long.
        """
        own = {at: pair for at, pair in pairs.items() if group.rank in pair}
        mine = sorted(own, key=lambda at: (own[at][0] % 2, own[at], at))
        nccl = group.together(lambda: Nccl.load() if mine else None)
        ids = _exchanged(group, nccl, own)
        started: dict[int, Communicator] = {}
        if nccl is not None and gpu is not None:
            stream = gpu.stream()
            for at in mine:
                pair = own[at]
                with _patiently(group, pair, abort):
                    edge = f"edge rank {pair[0]} -> rank {pair[1]}"
                    place = pair.index(group.rank)
                    started[at] = Communicator.start(nccl, ids[at], place, 2, edge)
                    _warm(started[at], gpu, stream, sends=place == 0)
        return cls(started, own)

    def __getitem__(self, channel: int) -> Held:
        """The communicator of a channel."""
        return self._held[channel]

    def __iter__(self) -> Iterator[int]:
        """The channels."""
        return iter(self._held)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._held)

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def abort(self) -> None:
        """Stop their kernels, which else wait for a peer that will not come. Bounded."""
        self._closed.set()
        thread = threading.Thread(target=self._abort, daemon=True)
        thread.start()
        thread.join(_ABORT_SECONDS)

    def _abort(self) -> None:
        for communicator in self._communicators.values():
            communicator.abort()

    def _let_go(self) -> None:
        """To close one is a meeting of both ranks again: so, too, all in one order."""
        self._in_use -= 1
        if self._in_use == 0:
            self._closed.set()
            for communicator in self._communicators.values():
                communicator.close()

    def _watch(self) -> None:
        """NCCL finds out about a network's failure by itself, but tells only who asks."""
        while not self._closed.wait(_LOOK_SECONDS):
            for at, communicator in self._communicators.items():
                if problem := communicator.problem():
                    pair = self._pairs[at]
                    raise WireError(
                        f"edge rank {pair[0]} -> rank {pair[1]} broke: {problem}; look for the "
                        "first error of either rank, and run with NCCL_DEBUG=INFO to see more"
                    )


class Held:
    """A communicator in the hands of a channel; see `nccl_channel.P2PTransport`."""

    def __init__(self, communicator: Communicator, let_go: Callable[[], None]) -> None:
        self.send = communicator.send
        self.receive = communicator.receive
        self._let_go = let_go
        self._open = True

    def close(self) -> None:
        """The last one that a rank closes frees all that were started together. *Collective.*"""
        if self._open:
            self._open = False
            self._let_go()


def _exchanged(group: Group, nccl: Nccl | None, own: Mapping[int, Pair]) -> dict[int, bytes]:
    """By channel, the id that its producer made for it."""
    made = group.together(
        lambda: [
            [at, nccl.unique_id().hex()]
            for at, pair in own.items()
            if nccl and pair[0] == group.rank
        ]
    )
    texts = group.all_gather(json.dumps(made))
    return {at: bytes.fromhex(digits) for text in texts for at, digits in json.loads(text)}


@contextmanager
def _patiently(group: Group, pair: Pair, abort: Abort) -> Iterator[None]:
    peer = pair[1 - pair.index(group.rank)]
    message = (
        f"rank {group.rank} on {group.host} could not connect its GPU to that of rank {peer} on "
        f"{group.hosts[peer]} (edge rank {pair[0]} -> rank {pair[1]}) within {_PATIENCE:.0f} s; "
        f"see that rank {peer} is alive, name the network with NCCL_SOCKET_IFNAME or NCCL_IB_HCA, "
        "and run with NCCL_DEBUG=INFO to see how far NCCL comes"
    )
    with deadline(abort, _PATIENCE, message):
        yield


def _warm(communicator: Communicator, gpu: Gpu, stream: Stream, sends: bool) -> None:
    """Use it once, which is when NCCL makes its connections."""
    memory, done = gpu.empty(1), gpu.event()
    move = communicator.send if sends else communicator.receive
    done.record(gpu.compute)
    stream.wait_event(done)
    move(memory.data_ptr(), memory.nbytes, stream.cuda_stream)
    done.record(stream)
    wait_for_event(done)
