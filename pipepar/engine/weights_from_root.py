"""Weights that only the root reads: it sends each rank the weights of that rank's stage."""

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

# Depth of the channel to each rank: one tensor is read while another is sent.
_DEPTH: Final = 1


class WeightsFromRoot:
    """The `Weights` of this rank's stage, which the root reads and sends.

    *Collective*: construct it on all ranks. The root reads the other ranks' tensors one after
    another, so only a few are in its memory at a time. CPU tensors of an existing module are sent
    without a copy.

    Args:
        world: all ranks.
        weights: the source of the weights; only the root reads it.
        specs: the weights of each rank's stage, by rank.
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
        """Check the weights of all stages on the root; do nothing on other ranks.

        Args:
            specs: not used; the root has the specs of all ranks.

        Raises:
            WeightsError: see `Weights.check`.
        """
        if self._receiver is None:
            every = {spec.name: spec for stage in self._specs for spec in stage}
            self._weights.check(list(every.values()))

    def read(self, specs: Sequence[WeightSpec]) -> Reading:
        """Read this rank's weights; the root first sends those of the other ranks. *Collective.*

        May be called once. The root sends when the first tensor is requested, so it must iterate
        even if `specs` is empty. Close an iterator that is not exhausted: on ranks other than the
        root, this receives and discards the remaining tensors.

        Args:
            specs: the weights of this rank's stage; used on the root only, which has the specs of
                all other ranks.

        Yields:
            Name and tensor of each weight.

        Raises:
            WeightsError: on the root, see `Weights.read`.
            PeerError: on another rank: the root could not read the weights.
        """
        return self._send_then_read(specs) if self._receiver is None else _receive(self._receiver)

    def _send_then_read(self, specs: Sequence[WeightSpec]) -> Reading:
        pending = dict(self._senders)
        try:
            while pending:
                rank = min(pending)
                _send(pending[rank], self._weights.read(self._specs[rank]))
                del pending[rank]
        except Exception:
            for sender in pending.values():
                sender.send(MicroBatch(0, (None, None)))  # `_receive` raises PeerError for it
                sender.end()
            raise
        finally:
            for sender in self._senders.values():
                sender.close()
        yield from self._weights.read(specs)


def share_buffers(world: World, module: nn.Module) -> None:
    """Copy the root's non-persistent buffers, which no checkpoint has, to all ranks. *Collective.*

    Other ranks may have computed other values: from parameters on meta, or with a random generator
    in another state.

    Args:
        world: all ranks.
        module: has the same structure on every rank. Its non-persistent buffers are replaced,
            except on the root.
    """
    receivers, senders = world.connect([Link(world.root, rank, _DEPTH) for rank in world.others])
    for sender in senders.values():
        _send(sender, ((name, buffer) for name, buffer in non_persistent_buffers(module).items()))
        sender.close()
    for receiver in receivers.values():
        for name, buffer in _receive(receiver):
            path, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(path), leaf, buffer)


def _send(sender: Sender, tensors: Reading) -> None:
    for index, (name, tensor) in enumerate(tensors):
        sender.send(MicroBatch(index, (name, tensor.cpu())))
    sender.end()


def _receive(receiver: Receiver) -> Reading:
    stream = receiver.receive()
    try:
        for microbatch in stream:
            name, tensor = microbatch.values
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise PeerError("rank 0 could not read the weights; see the error of rank 0")
            yield name, compact(tensor)
    finally:
        deque(stream, maxlen=0)
        receiver.close()
