"""The description of a channel between two ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """A channel for `World.connect` to create."""

    producer: int
    """The rank that sends."""
    consumer: int
    """The rank that receives."""
    depth: int
    """The number of micro-batches that may be under way at each end."""
    from_gpu: bool = False
    """Whether the producer computes on a GPU."""
    to_gpu: bool = False
    """Whether the consumer computes on a GPU."""

    @property
    def by_nccl(self) -> bool:
        """Whether both ends are GPUs, which NCCL then connects."""
        return self.from_gpu and self.to_gpu
