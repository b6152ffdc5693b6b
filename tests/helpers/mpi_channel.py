"""A channel from rank 0 to rank 1, and comparisons of what it transfers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.microbatch import MicroBatch, TensorSpec, Value


@contextmanager
def ends(world: World, depth: int = 3) -> Iterator[tuple[Receiver | None, Sender | None]]:
    """Connect a channel from rank 0 to rank 1; yield this rank's ends, None for others."""
    receivers, senders = world.connect([Link(0, 1, depth)])
    receiver, sender = receivers.get(0), senders.get(0)
    yield receiver, sender
    for end in (sender, receiver):
        if end is not None:
            end.close()


def transfer(world: World, values: Sequence[tuple[Value, ...]], depth: int = 3) -> list[MicroBatch]:
    """Send values from rank 0 to rank 1, and return what rank 1 receives; [] on other ranks."""
    with ends(world, depth) as (receiver, sender):
        if sender is not None:
            for index, each in enumerate(values):
                sender.send(MicroBatch(index, each))
            sender.end()
        return list(receiver.receive()) if receiver is not None else []


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits as integers, which can be compared for NaN and for any dtype."""
    same_width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.dtype.itemsize == 16:
        return torch.view_as_real(tensor).view(torch.int64)
    return tensor.view(same_width[tensor.dtype.itemsize])


def assert_same(found: Value, sent: Value) -> None:
    if isinstance(sent, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert TensorSpec.of(found) == TensorSpec.of(sent)
        assert torch.equal(bits(found), bits(sent))
    else:
        assert type(found) is type(sent)
        assert found == sent or (found != found and sent != sent)
