"""What planning reckons with: seconds and bytes of layers, devices and links."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One operation of a model, for one micro-batch."""

    work: float | Mapping[str, float]
    """How much there is to compute: floating-point operations, or what takes as long.

    Or that by `DeviceCost.kind`, since kinds of devices rank operations differently; where work
    was measured in seconds, the devices' speed is 1.
    """
    weights: float = 0.0
    """Bytes of the weights that it uses."""
    workspace: float = 0.0
    """Bytes that it needs while it computes: what it reads and makes."""
    crossing: float | None = None
    """Bytes that cross to the next stage if one cuts before it; None where that is not legal."""

    def work_on(self, kind: str) -> float:
        """How much there is to compute on a device of one kind."""
        return self.work[kind] if isinstance(self.work, Mapping) else self.work


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What one rank computes with."""

    speed: float
    """Work a second, in the unit of `LayerCost.work` for its kind; above 0."""
    memory: float = math.inf
    """Bytes that a stage may take."""
    kind: str = ""
    """What decides how long layers take, up to the speed; links may be given by two kinds."""


@dataclass(frozen=True, slots=True)
class LinkCost:
    """What carries micro-batches from one device to the next: the alpha-beta model."""

    latency: float = 0.0
    """Seconds for a message of no bytes."""
    bandwidth: float = math.inf
    """Bytes a second."""

    def seconds(self, size: float) -> float:
        """Time for so many bytes."""
        return self.latency + size / self.bandwidth
