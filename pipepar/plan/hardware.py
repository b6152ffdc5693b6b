"""The devices that stages run on, in order, and what joins them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Protocol

from pipepar.plan.costs import DeviceCost, LinkCost


class Hardware(Protocol):
    """What a model is planned for."""

    @property
    def devices(self) -> Sequence[DeviceCost]:
        """One for each rank, in order."""

    def link(self, one: int, other: int) -> LinkCost:
        """What connects two devices, by position."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Devices in a row, of which each link between neighbours is known."""

    devices: tuple[DeviceCost, ...]
    """One for each rank, in order."""
    links: tuple[LinkCost, ...]
    """links[k] joins the devices at k and k + 1."""

    def link(self, one: int, other: int) -> LinkCost:
        """What connects two devices; as slow as the slowest link between them."""
        return _slowest(self.links[min(one, other) : max(one, other)])


@dataclass(frozen=True, slots=True)
class Interchangeable:
    """Devices whose order is free: those of one kind count as alike, as the worst of them."""

    devices: tuple[DeviceCost, ...]
    """One for each rank, in order."""
    links: Mapping[frozenset[str], LinkCost]
    """By the kinds of the two devices that a link joins."""

    @classmethod
    def of(cls, measured: Neighbours) -> Interchangeable:
        """Devices whose links between neighbours were measured; others are as bad as any."""
        worst = {device.kind: device for device in measured.devices}
        for device in measured.devices:
            known = worst[device.kind]
            worst[device.kind] = replace(
                known,
                speed=min(known.speed, device.speed),
                memory=min(known.memory, device.memory),
            )
        devices = tuple(worst[device.kind] for device in measured.devices)
        last = len(devices) - 1
        slowest = measured.link(0, last)
        links = {frozenset(pair): slowest for pair in product(worst, worst)}
        joined: dict[frozenset[str], list[LinkCost]] = {}
        for link, (one, other) in zip(measured.links, pairwise(devices), strict=True):
            joined.setdefault(frozenset((one.kind, other.kind)), []).append(link)
        return cls(devices, links | {kinds: _slowest(each) for kinds, each in joined.items()})

    def link(self, one: int, other: int) -> LinkCost:
        """What connects two devices, by position."""
        return self.links[frozenset((self.devices[one].kind, self.devices[other].kind))]


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
        """What connects two devices, by stage."""
        return self.whole.link(self.order[one], self.order[other])


def several_kinds(hardware: Hardware) -> bool:
    """Whether the devices are not all of one kind, so that their order can matter."""
    return len({device.kind for device in hardware.devices}) > 1


def _slowest(links: Sequence[LinkCost]) -> LinkCost:
    return LinkCost(max(link.latency for link in links), min(link.bandwidth for link in links))
