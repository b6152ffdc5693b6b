"""Where to cut, and which device takes which stage: as fast as can be, then with the fewest bytes.

The bottleneck is what the slowest device or link takes for a micro-batch, in seconds; a pipeline
delivers no faster (PipeDream, Narayanan et al., SOSP 2019, on the linear partition problem; Skiena,
*The Algorithm Design Manual*, section 10.7). A bottleneck alone leaves most cuts undecided, and
they would land anywhere, inside attention too, where several tensors cross instead of one. So
bytes need a price off the bottleneck as well: of all partitions whose bottleneck is at most
(1 + slack) times the smallest, the one is taken that has the fewest bytes crossing in total, and
of those the one with the smallest bottleneck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from pipepar.errors import PlanError
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.device_states import LinkOf, in_any_order, in_order
from pipepar.plan.infeasible import check_cuts, check_work, no_room
from pipepar.plan.prefix_sums import prefix_sums
from pipepar.plan.search import ROUNDING, Table, smallest_bottleneck

Links = Sequence[LinkCost] | Mapping[frozenset[str], LinkCost]

# Of a table of places and states, 22 bytes each.
_MOST_ENTRIES = 10**8


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Which devices may take which stages."""

    free_order: bool = False
    """Whether any device may take any stage; otherwise they take stages in the order given."""
    fewer: bool = False
    """Whether devices may be left out: all but a run of neighbours, or any in a free order."""


ALL_IN_ORDER: Final = DeviceUse()
"""Every device takes a stage, in the order given."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A model's stages, and what computes them."""

    cuts: tuple[int, ...]
    """The first layer of each stage but the first, ascending."""
    devices: tuple[int, ...]
    """Which device takes each stage, as its place among those given."""
    bottleneck: float
    """Seconds that the slowest device or link takes for a micro-batch."""


def partition(
    layers: Sequence[LayerCost],
    devices: Sequence[DeviceCost],
    links: Links,
    use: DeviceUse = ALL_IN_ORDER,
    *,
    depth: int = 2,
    slack: float = 0.05,
) -> Partition:
    """Divide a row of layers among devices.

    A stage takes the longest of: its work on its device, its inputs over the link before it, its
    outputs over the link behind it. It fits a device that holds its weights, `depth` times what
    crosses at both its ends, and the largest workspace of its layers.

    The answer is exact, or refused. It takes O(P^2 S) steps at most, for P legal cuts and S sets
    of devices that the stages so far may have taken, and O(P^2) where all stages are about alike.
    In a given order S is the number of devices, or half its square with `use.fewer`. In a free
    order it counts how many devices of each kind are taken: about 11,000 for 64 devices of 3 kinds,
    84,000 for 4; times the kinds where links differ. P S beyond 10^8 is refused, for its memory.

    Args:
        layers: the model, in order; the work of all is one number, or of all by kind of device.
        devices: one for each stage; without `use.free_order` they take stages in this order.
        links: links[k] joins the devices at k and k + 1, one fewer than devices; with
            `use.free_order` all alike. Or by the kinds of the two devices that a link joins.
        use: which devices may take which stages. Where some may be left out, the smallest
            bottleneck wins, then the fewest stages that reach it; then bytes decide.
        depth: how many micro-batches a channel holds, at each end of a stage.
        slack: how much the bottleneck may exceed the smallest possible, as a fraction of it.

    Returns:
        The partition. Every stage has work above 0, for one of the kinds at least and not always
        that of its own device, unless it is the only one.

    Raises:
        PlanError: there are fewer legal cuts than the stages need, no partition fits the devices'
            memory, the order is free and the links differ, there are too many kinds of devices, or
            layers lack work for one of them.
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
    if isinstance(links, Mapping):
        joined = _between_kinds(links)
        return [joined(one, other) for one, other in pairwise(devices)]
    return links


def _between_kinds(links: Links) -> LinkOf:
    if isinstance(links, Mapping):
        return lambda one, other: links[frozenset((one.kind, other.kind))]
    if len(set(links)) > 1:
        raise PlanError(
            f"found {len(set(links))} links that differ between devices in any order, expected "
            f"them alike: which of them joins two stages depends on the order; give links by the "
            f"kinds of devices, or keep the order"
        )
    return lambda one, other: links[0]


def _check(devices: Sequence[DeviceCost], links: Links) -> None:
    if not devices:
        raise PlanError("found 0 stages, expected 1 or more; start at least 1 rank")
    if not isinstance(links, Mapping) and len(links) != len(devices) - 1:
        raise ValueError(f"{len(links)} links between {len(devices)} devices")
    for index, device in enumerate(devices):
        if not 0 < device.speed < math.inf:
            raise PlanError(
                f"found a speed of {device.speed:g} for device {index}, expected a number above 0; "
                f"give the work that it does in a second"
            )
    for link in links.values() if isinstance(links, Mapping) else links:
        if not (link.bandwidth > 0 and 0 <= link.latency < math.inf):
            raise PlanError(
                f"found a link of {link.latency:g} seconds and {link.bandwidth:g} bytes a second, "
                f"expected 0 or more and above 0; give what it takes and carries"
            )
