"""A channel between two ranks that is to be connected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """One channel to be connected."""

    producer: int
    """Rank that sends."""
    consumer: int
    """Rank that receives."""
    depth: int
    """How many micro-batches may be under way on each end."""
    from_gpu: bool = False
    """Whether tensors lie on the producer's GPU."""
    to_gpu: bool = False
    """Whether the consumer wants them on its GPU."""

    @property
    def by_nccl(self) -> bool:
        """Whether they go from GPU to GPU."""
        return self.from_gpu and self.to_gpu
