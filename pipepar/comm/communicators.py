"""A rank's NCCL communicators: one for each edge between two GPUs, started and watched together.

One communicator does everything that it is given in one order, whatever the CUDA stream; so every
edge has its own. The first use of one is a meeting of both ranks: all ranks go through the edges in
one order, so nobody waits for a rank that waits for somebody else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from pipepar.comm.gpu import Gpu, wait_for_event
from pipepar.comm.nccl import Communicator, Nccl
from pipepar.comm.patience import within
from pipepar.errors import WireError

if TYPE_CHECKING:
    from pipepar.comm.world import World

Pair: TypeAlias = tuple[int, int]
"""Producer and consumer."""

# Loading NCCL's kernels and finding the network takes seconds, on a busy file system many.
_PATIENCE: Final = 120.0
_LOOK_SECONDS: Final = 0.5
# Where the driver hangs, so does an abort.
_ABORT_SECONDS: Final = 1.0


class Communicators(Mapping[Pair, Communicator]):
    """Those of this rank, by edge; made by `start`. A failure of one is raised in a thread."""

    def __init__(self, communicators: Mapping[Pair, Communicator]) -> None:
        self._communicators = communicators
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="pipepar-nccl", daemon=True).start()

    @classmethod
    def start(cls, world: World, pairs: Sequence[Pair], gpu: Gpu | None) -> Communicators:
        """Connect the GPUs at the ends of each edge. *Collective*; the same edges on every rank.

        Args:
            world: all ranks.
            pairs: the edges, acyclic.
            gpu: this rank's; None where it is the end of no edge.

        Raises:
            WireError: NCCL is not there, or says that it cannot; on other ranks PeerError, or the
                job is ended once they have waited too long.
        """
        mine = [pair for pair in pairs if world.rank in pair]
        nccl = world.together(lambda: Nccl.load() if mine else None)
        ids = _exchanged(world, nccl, mine)
        started: dict[Pair, Communicator] = {}
        if nccl is None or gpu is None:
            return cls(started)
        for pair in sorted(mine, key=lambda pair: (pair[0] % 2, pair)):
            with _patiently(world, pair):
                what = f"edge rank {pair[0]} -> rank {pair[1]}"
                place = pair.index(world.rank)
                started[pair] = Communicator.start(nccl, ids[pair], place, 2, what)
                _warm(started[pair], gpu, sends=place == 0)
        return cls(started)

    def __getitem__(self, pair: Pair) -> Communicator:
        """The communicator of an edge."""
        return self._communicators[pair]

    def __iter__(self) -> Iterator[Pair]:
        """The edges."""
        return iter(self._communicators)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._communicators)

    def close(self) -> None:
        """Watch no longer. *Local.*"""
        self._closed.set()

    def abort(self) -> None:
        """Stop their kernels, which else wait for a peer that will not come. *Local*, bounded."""
        self._closed.set()
        thread = threading.Thread(target=self._abort, daemon=True)
        thread.start()
        thread.join(_ABORT_SECONDS)

    def _abort(self) -> None:
        for communicator in self.values():
            communicator.abort()

    def _watch(self) -> None:
        """NCCL finds out about a network's failure by itself, but tells only who asks."""
        while not self._closed.wait(_LOOK_SECONDS):
            for communicator in self.values():
                if problem := communicator.problem():
                    raise WireError(problem)


def _exchanged(world: World, nccl: Nccl | None, mine: Sequence[Pair]) -> dict[Pair, bytes]:
    """By edge, the id that its producer made for it."""
    made = [[*pair, nccl.unique_id().hex()] for pair in mine if nccl and pair[0] == world.rank]
    texts = world.all_gather(json.dumps(made))
    return {
        (producer, consumer): bytes.fromhex(digits)
        for text in texts
        for producer, consumer, digits in json.loads(text)
    }


@contextmanager
def _patiently(world: World, pair: Pair) -> Iterator[None]:
    peer = pair[1 - pair.index(world.rank)]
    message = (
        f"rank {world.rank} on {world.host} could not connect its GPU to that of rank {peer} on "
        f"{world.hosts[peer]} (edge rank {pair[0]} -> rank {pair[1]}) within {_PATIENCE:.0f} s; "
        f"see that rank {peer} is alive, name the network with NCCL_SOCKET_IFNAME or NCCL_IB_HCA, "
        "and run with NCCL_DEBUG=INFO to see how far NCCL comes"
    )
    with within(world, _PATIENCE, message):
        yield


def _warm(communicator: Communicator, gpu: Gpu, sends: bool) -> None:
    """Use it once, which is when NCCL makes its connections."""
    memory, stream, done = gpu.empty(1), gpu.stream(), gpu.event()
    move = communicator.send if sends else communicator.receive
    done.record(gpu.compute)
    stream.wait_event(done)
    move(memory.data_ptr(), memory.nbytes, stream.cuda_stream)
    done.record(stream)
    wait_for_event(done)
