"""The devices that stages run on, in order, and what joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipepar.plan.costs import DeviceCost, LinkCost


class Hardware(Protocol):
    """What a model is planned for."""

    @property
    def devices(self) -> Sequence[DeviceCost]:
        """One for each rank, in order."""

    def link(self, one: int, other: int) -> LinkCost:
        """What connects two devices, by position. *Local.*"""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Devices in a sums, of which each link between neighbours is known."""

    devices: tuple[DeviceCost, ...]
    """One for each rank, in order."""
    links: tuple[LinkCost, ...]
    """links[k] joins the devices at k and k + 1."""

    def link(self, one: int, other: int) -> LinkCost:
        """What connects two devices; as slow as the slowest link between them. *Local.*"""
        between = self.links[min(one, other) : max(one, other)]
        return LinkCost(
            max(link.latency for link in between), min(link.bandwidth for link in between)
        )


@dataclass(frozen=True, slots=True)
class DeviceSubset:
    """Some of the devices, in the order in which stages take them."""

    whole: Hardware
    """All of them."""
    order: tuple[int, ...]
    """The position there of each that is taken."""

    @property
    def devices(self) -> Sequence[DeviceCost]:
        """One for each stage, in order."""
        return tuple(self.whole.devices[place] for place in self.order)

    def link(self, one: int, other: int) -> LinkCost:
        """What connects two devices, by stage. *Local.*"""
        return self.whole.link(self.order[one], self.order[other])
