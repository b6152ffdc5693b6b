"""Weights that only the root can read: it sends each stage its own, over channels of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.errors import PeerError
from pipepar.microbatch import MicroBatch, compact
from pipepar.model.module_tensors import non_persistent_buffers
from pipepar.model.weights.weight_source import Reading, Weights, WeightSpec

# Tensors on their way to one stage: one is read while another travels.
_DEPTH: Final = 1


class FromRoot:
    """`Weights` of this rank's stage, sent by rank 0. *Collective*: every rank makes one.

    Rank 0 holds few tensors at a time that are not its own stage's, and none where its weights are
    a module's: those are sent from where they lie.

    Args:
        world: all ranks; rank k owns stage k.
        weights: where they lie; rank 0's is used.
        specs: for each rank what its stage owns.
    """

    def __init__(
        self, world: World, weights: Weights, specs: Sequence[Sequence[WeightSpec]]
    ) -> None:
        others = world.others
        receivers, senders = world.connect([Link(world.root, rank, _DEPTH) for rank in others])
        self._receiver = next(iter(receivers.values()), None)
        self._senders = {others[channel]: sender for channel, sender in senders.items()}
        self._weights = weights
        self._specs = specs

    def check(self, specs: Sequence[WeightSpec]) -> None:
        """Rank 0 verifies every stage's; see `Weights.check`."""
        if self._receiver is None:
            every = {spec.name: spec for stage in self._specs for spec in stage}
            self._weights.check(list(every.values()))

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Send those of the others, then read one's own; or receive them. *Collective*, once.

        An iterator that is not taken to its end must be closed: what is under way is dropped.

        Raises:
            WeightsError: on rank 0, see `Weights.read`.
            PeerError: rank 0 could not read them.
        """
        return self._sent(specs) if self._receiver is None else _received(self._receiver)

    def _sent(self, specs: Sequence[WeightSpec]) -> Reading:
        pending = dict(self._senders)
        try:
            while pending:
                rank = min(pending)
                _send(pending[rank], self._weights.read(self._specs[rank]))
                del pending[rank]
        except Exception:
            for sender in pending.values():
                sender.send(MicroBatch(0, (None, None)))
                sender.end()
            raise
        finally:
            for sender in self._senders.values():
                sender.close()
        yield from self._weights.read(specs)


def share_buffers(world: World, module: nn.Module) -> None:
    """Give every rank rank 0's values of the buffers that no checkpoint holds. *Collective.*

    Another rank may have computed them otherwise: from a parameter that has no values there, or of
    random numbers, of which it draws fewer.

    Args:
        world: all ranks.
        module: the same on every rank; changed in place on all but rank 0.
    """
    receivers, senders = world.connect([Link(world.root, rank, _DEPTH) for rank in world.others])
    for sender in senders.values():
        _send(sender, ((name, buffer) for name, buffer in non_persistent_buffers(module).items()))
        sender.close()
    for receiver in receivers.values():
        for name, buffer in _received(receiver):
            path, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(path), leaf, buffer)


def _send(sender: Sender, tensors: Reading) -> None:
    for index, (name, tensor) in enumerate(tensors):
        sender.send(MicroBatch(index, (name, tensor.cpu())))
    sender.end()


def _received(receiver: Receiver) -> Reading:
    stream = receiver.receive()
    try:
        for microbatch in stream:
            name, tensor = microbatch.values
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise PeerError("rank 0 could not read the weights")
            yield name, compact(tensor)
    finally:
        deque(stream, maxlen=0)
        receiver.close()
