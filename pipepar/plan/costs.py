"""The input of the planner: seconds and bytes of layers, devices and links."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The cost of one operation of a model, for one micro-batch."""

    work: float | Mapping[str, float]
    """The amount of work: floating-point operations, or measured seconds.

    One number for all devices, or one for each `DeviceCost.kind`, since an operation that is slow
    on one kind may be fast on another. If work is in seconds, devices have a speed of about 1.
    """
    weights: float = 0.0
    """Bytes of the weights that it uses."""
    workspace: float = 0.0
    """Bytes of the activations that it reads and writes; weights are not included."""
    crossing: float | None = None
    """Bytes that cross between stages if the model is cut before it; None where that is illegal."""

    def work_on(self, kind: str) -> float:
        """Return the work on a device of one kind."""
        return self.work[kind] if isinstance(self.work, Mapping) else self.work


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """The device of one rank."""

    speed: float
    """Work per second, in the unit of `LayerCost.work` for its kind; above 0."""
    memory: float = math.inf
    """Bytes available to a stage."""
    kind: str = ""
    """The name of the kind of device; selects the work of a layer, and may select a link."""


@dataclass(frozen=True, slots=True)
class LinkCost:
    """The link between two devices, by the alpha-beta model."""

    latency: float = 0.0
    """Seconds for an empty message."""
    bandwidth: float = math.inf
    """Bytes per second."""

    def seconds(self, size: float) -> float:
        """Return the transfer time of `size` bytes."""
        return self.latency + size / self.bandwidth
