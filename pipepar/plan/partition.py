"""Choice of cuts and devices: the smallest bottleneck, then the fewest crossing bytes.

The bottleneck is the time, in seconds, of the slowest device or link for one micro-batch; it limits
the throughput of a pipeline (PipeDream, Narayanan et al., SOSP 2019, on the linear partition
problem; Skiena, *The Algorithm Design Manual*, section 10.7). The bottleneck alone leaves most cuts
undecided. They could then be anywhere, even inside attention, where several tensors cross instead
of one. So bytes count too: of all partitions whose bottleneck is at most (1 + slack) times the
smallest, the one with the fewest crossing bytes in total is taken, and of those the one with the
smallest bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

from pipepar.errors import PlanError
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.device_states import LinkOf, in_any_order, in_order
from pipepar.plan.infeasible import check_cuts, check_work, no_room
from pipepar.plan.prefix_sums import prefix_sums
from pipepar.plan.search import ROUNDING, Table, smallest_bottleneck

Links = Sequence[LinkCost] | Mapping[frozenset[str], LinkCost]

# Limit of the entries of a search table (places x states), of 22 bytes each.
_MOST_ENTRIES = 10**8


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Which devices may take which stages."""

    free_order: bool = False
    """Whether any device may take any stage; otherwise stages take them in the given order."""
    fewer: bool = False
    """Whether devices may be left out; in the given order, those used are neighbours."""


ALL_IN_ORDER: Final = DeviceUse()
"""Every device takes a stage, in the order given."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The stages of a model, and their devices."""

    cuts: tuple[int, ...]
    """The first layer of each stage except stage 0, ascending."""
    devices: tuple[int, ...]
    """For each stage, the index of its device among those given."""
    bottleneck: float
    """Seconds of the slowest device or link for one micro-batch."""


def partition(
    layers: Sequence[LayerCost],
    devices: Sequence[DeviceCost],
    links: Links,
    use: DeviceUse = ALL_IN_ORDER,
    *,
    depth: int = 2,
    slack: float = 0.05,
) -> Partition:
    """Divide a sequence of layers among devices.

    The time of a stage is the longest of: its work on its device, the transfer of its inputs, and
    the transfer of its outputs. Its memory is its weights, `depth` times the bytes that cross at
    both its ends, and the largest workspace of its layers.

    The result is exact, or refused. The search takes at most O(P^2 S) steps, for P legal cuts and S
    states (sets of devices that the stages so far may have taken), and O(P^2) if all stages take
    about the same time. In the given order S is the number of devices, or half its square with
    `use.fewer`. In a free order a state is the number of devices taken of each kind: about 11,000
    states for 64 devices of 3 kinds, 84,000 for 4 kinds; times the number of kinds if links differ.
    A table of more than 10^8 entries (P S) is refused, because of its memory.

    Args:
        layers: the model, in order; the work of every layer is one number, or is by kind of device.
        devices: one for each stage, or more with `use.fewer`; without `use.free_order` stages take
            them in this order.
        links: either a sequence, where links[k] joins the devices at k and k + 1 and all are alike
            with `use.free_order`; or the link of every pair of devices, by their kinds.
        use: which devices may take which stages. If some may be left out, the smallest bottleneck
            wins, then the fewest stages that reach it, then the fewest bytes.
        depth: number of micro-batches that a channel holds, at each end of a stage.
        slack: how much the bottleneck may exceed the smallest possible one, as a fraction.

    Returns:
        The partition. Every stage has work above 0 for at least one kind of device, which need not
        be the kind of its own device. A single stage may have none.

    Raises:
        PlanError: there are fewer legal cuts than the stages need, no partition fits the memory of
            the devices, the order is free but the links of a sequence differ, the search table is
            too large, there is no device, or a device, a link or the work of a layer is missing or
            invalid.
        ValueError: the length of the sequence of links is not one less than the number of devices.
    """
    _check(devices, links)
    kinds = {device.kind for device in devices}
    check_work(layers, kinds)
    sums = prefix_sums(layers, kinds, depth)
    if not use.fewer:
        legal = sum(layer.crossing is not None for layer in layers[1:])
        check_cuts(sums, legal, len(devices))
    most = _MOST_ENTRIES // len(sums.done)
    if use.free_order:
        device_states = in_any_order(devices, _between_kinds(links), use.fewer, most)
    else:
        device_states = in_order(devices, _between_neighbours(devices, links), use.fewer, most)
    found = smallest_bottleneck(sums, device_states, use.fewer)
    if found is None:
        raise no_room(sums, devices)
    bottleneck, ends = found
    table = Table(sums, device_states, sums.crossing, bottleneck * (1 + slack + ROUNDING))
    return Partition(*table.best(ends))


def _between_neighbours(devices: Sequence[DeviceCost], links: Links) -> Sequence[LinkCost]:
    """Return the link between each device and the next one."""
    if isinstance(links, Mapping):
        joined = _between_kinds(links)
        return [joined(one, other) for one, other in pairwise(devices)]
    return links


def _between_kinds(links: Links) -> LinkOf:
    """Return a function from two devices to their link; raise PlanError if it is unknown."""
    if isinstance(links, Mapping):
        return partial(_by_kinds, links)
    if len(set(links)) > 1:
        raise PlanError(
            f"found {len(set(links))} links that differ between devices in any order, expected "
            f"equal links, since the order decides which link joins two stages; give links by the "
            f"kinds of devices, or keep the order"
        )
    return lambda one, other: links[0]


def _by_kinds(
    links: Mapping[frozenset[str], LinkCost], one: DeviceCost, other: DeviceCost
) -> LinkCost:
    link = links.get(frozenset((one.kind, other.kind)))
    if link is None:
        raise PlanError(
            f"found no link between devices of kinds {one.kind!r} and {other.kind!r}, expected one "
            "for each pair of kinds; give its latency and bandwidth"
        )
    return link


def _check(devices: Sequence[DeviceCost], links: Links) -> None:
    """Raise PlanError for no device or an invalid value, ValueError for a wrong number of links."""
    if not devices:
        raise PlanError("found 0 stages, expected 1 or more; start at least 1 rank")
    if not isinstance(links, Mapping) and len(links) != len(devices) - 1:
        raise ValueError(
            f"found {len(links)} links between {len(devices)} devices, expected {len(devices) - 1}"
        )
    for index, device in enumerate(devices):
        if not 0 < device.speed < math.inf:
            raise PlanError(
                f"found a speed of {device.speed:g} for device {index}, expected a number above 0; "
                f"give its work per second"
            )
    for link in links.values() if isinstance(links, Mapping) else links:
        if not (link.bandwidth > 0 and 0 <= link.latency < math.inf):
            raise PlanError(
                f"found a link with a latency of {link.latency:g} seconds and a bandwidth of "
                f"{link.bandwidth:g} bytes a second, expected 0 or more and above 0; correct them"
            )
