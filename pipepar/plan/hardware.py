"""The devices that stages run on, in order, and the links between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Protocol

from pipepar.plan.costs import DeviceCost, LinkCost


class Hardware(Protocol):
    """The devices and links that a model is planned for."""

    @property
    def devices(self) -> Sequence[DeviceCost]:
        """One for each rank, in order."""

    def link(self, one: int, other: int) -> LinkCost:
        """Return the link between two devices, given by position."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Devices in a row, with measured links between neighbours."""

    devices: tuple[DeviceCost, ...]
    """One for each rank, in order."""
    links: tuple[LinkCost, ...]
    """links[k] joins the devices at k and k + 1."""

    def link(self, one: int, other: int) -> LinkCost:
        """Return the largest latency and smallest bandwidth of the links between two devices."""
        return _slowest(self.links[min(one, other) : max(one, other)])


@dataclass(frozen=True, slots=True)
class Cluster:
    """Devices whose links depend only on their kinds, so that their order can be free."""

    devices: tuple[DeviceCost, ...]
    """One for each rank, in order."""
    links: Mapping[frozenset[str], LinkCost]
    """The link of every pair of devices, by their kinds."""

    @classmethod
    def by_kind(cls, measured: Neighbours) -> Cluster:
        """Return measured devices as a cluster, in which each kind has the worst measured values.

        All devices of a kind get the speed and memory of the worst of them. The link of a pair of
        kinds is the slowest measured between them, or the slowest of all if none was measured.
        """
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
        """Return the link between two devices, given by position."""
        return self.links[frozenset((self.devices[one].kind, self.devices[other].kind))]


@dataclass(frozen=True, slots=True)
class DeviceSubset:
    """Some devices of a larger hardware, in the order in which stages take them."""

    whole: Hardware
    """All devices."""
    order: tuple[int, ...]
    """For each stage, the position of its device in `whole`."""

    @property
    def devices(self) -> Sequence[DeviceCost]:
        """One for each stage, in order."""
        return tuple(self.whole.devices[position] for position in self.order)

    def link(self, one: int, other: int) -> LinkCost:
        """Return the link between the devices of two stages."""
        return self.whole.link(self.order[one], self.order[other])


def several_kinds(hardware: Hardware) -> bool:
    """Return whether there is more than one kind of device, so that their order can matter."""
    return len({device.kind for device in hardware.devices}) > 1


def _slowest(links: Sequence[LinkCost]) -> LinkCost:
    return LinkCost(max(link.latency for link in links), min(link.bandwidth for link in links))
