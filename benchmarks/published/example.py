"""One published example: what its layers cost, on which devices, and how its authors split it.

A JSON file holds the numbers as published and the factors that make them seconds and bytes: a
layer's seconds in a column for each kind of device, and the bytes that cross behind it.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import DeviceUse, partition

SLACK: Final = 0.05
"""How much the bottleneck may exceed the smallest unless `partition` is told otherwise."""

_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Split:
    """Stages, and what computes them."""

    cuts: tuple[int, ...]
    """The first layer of each stage but the first, ascending."""
    kinds: tuple[str, ...]
    """The kind of device that takes each stage."""


@dataclass(frozen=True, slots=True)
class Example:
    """Published numbers of one model on one set of devices, all links alike."""

    name: str
    """System and model."""
    source: str
    """Authors, year, repository and commit."""
    files: str
    """Where the costs are from, where the split is from, and what the numbers stand for."""
    seconds: dict[str, tuple[float, ...]]
    """Seconds of each layer on each kind of device."""
    crossing: tuple[float, ...]
    """Bytes that cross if one cuts behind each layer."""
    links: dict[str, LinkCost]
    """What may join two devices, by its name."""
    theirs: Split
    """The published split; ours has the same devices."""

    def bottleneck(self, split: Split, link: LinkCost) -> float:
        """Seconds of the slowest stage or transfer, by the published times."""
        ends = (0, *split.cuts, len(self.crossing))
        stages = zip(split.kinds, pairwise(ends), strict=True)
        compute = [math.fsum(self.seconds[kind][a:b]) for kind, (a, b) in stages]
        return max(compute + [link.seconds(self.crossing[cut - 1]) for cut in split.cuts])

    def ours(self, link: LinkCost, slack: float) -> Split:
        """The split found here, in any order of the devices."""
        kinds = self.theirs.kinds
        works = zip(*self.seconds.values(), strict=True)
        layers = [
            LayerCost(dict(zip(self.seconds, work, strict=True)), crossing=size)
            for work, size in zip(works, (None, *self.crossing[:-1]), strict=True)
        ]
        devices = [DeviceCost(1.0, kind=kind) for kind in kinds]
        links = [link] * (len(devices) - 1)
        found = partition(layers, devices, links, DeviceUse(free_order=True), slack=slack)
        return Split(found.cuts, tuple(kinds[index] for index in found.devices))

    def smallest(self, link: LinkCost) -> float:
        """The smallest bottleneck of any split and order of the devices, in seconds.

        By the published times, layer by layer: what PipeDream's optimizer without replicas and
        PipeEdge's scheduler look for.
        """
        sums = {kind: tuple(accumulate(own, initial=0.0)) for kind, own in self.seconds.items()}
        transfers = [link.seconds(size) for size in self.crossing]
        layers = len(transfers)

        @functools.cache
        def rest(begin: int, kinds: tuple[str, ...]) -> float:
            if len(kinds) == 1:
                return sums[kinds[0]][layers] - sums[kinds[0]][begin]
            return min(
                max(
                    sums[kind][end] - sums[kind][begin],
                    transfers[end - 1],
                    rest(end, _without(kinds, kind)),
                )
                for kind in set(kinds)
                for end in range(begin + 1, layers - len(kinds) + 2)
            )

        return rest(0, tuple(sorted(self.theirs.kinds)))


def _without(kinds: Sequence[str], kind: str) -> tuple[str, ...]:
    place = kinds.index(kind)
    return (*kinds[:place], *kinds[place + 1 :])


def examples() -> list[Example]:
    """All of this folder, by name."""
    return [_read(path) for path in sorted(_FOLDER.glob("*.json"))]


def _read(path: Path) -> Example:
    held = json.loads(path.read_text(encoding="utf-8"))
    kinds = tuple(held["devices"])
    _, *columns, crossing = zip(*held["layers"], strict=True)
    return Example(
        name=held["name"],
        source=held["source"],
        files=f"costs: {held['costs']}; split: {held['split']}; {held['note']}",
        seconds={
            kind: tuple(value * held["seconds"] for value in column)
            for kind, column in zip(dict.fromkeys(kinds), columns, strict=True)
        },
        crossing=tuple(float(size) * held["bytes"] for size in crossing),
        links={
            name: LinkCost(bandwidth=math.inf if bandwidth is None else bandwidth)
            for name, bandwidth in held["bandwidths"].items()
        },
        theirs=Split(tuple(held["cuts"]), kinds),
    )
