"""One published example: the costs of its layers, its devices, and the split of its authors.

A JSON file contains the numbers as published and the factors that convert them to seconds and
bytes: for each layer the seconds on each kind of device, and the bytes that cross behind it.
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
"""The default of `partition`: how much the bottleneck may exceed the smallest, as a share."""

_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Split:
    """Stages, and the devices that compute them."""

    cuts: tuple[int, ...]
    """The first layer of each stage except the first, ascending."""
    kinds: tuple[str, ...]
    """The kind of device of each stage."""


@dataclass(frozen=True, slots=True)
class Example:
    """Published numbers of one model on one set of devices with equal links."""

    name: str
    """System and model."""
    source: str
    """Authors, year, repository and commit."""
    files: str
    """The files of the costs and of the split, and the meaning of the numbers."""
    seconds: dict[str, tuple[float, ...]]
    """Seconds of each layer on each kind of device."""
    crossing: tuple[float, ...]
    """The bytes that cross a cut behind each layer."""
    links: dict[str, LinkCost]
    """The possible links between devices, by name."""
    theirs: Split
    """The published split; the split of pipepar uses the same devices."""

    def bottleneck(self, split: Split, link: LinkCost) -> float:
        """Return the seconds of the slowest stage or transfer, by the published times."""
        ends = (0, *split.cuts, len(self.crossing))
        stages = zip(split.kinds, pairwise(ends), strict=True)
        compute = [math.fsum(self.seconds[kind][a:b]) for kind, (a, b) in stages]
        return max(compute + [link.seconds(self.crossing[cut - 1]) for cut in split.cuts])

    def ours(self, link: LinkCost, slack: float) -> Split:
        """Return the split of pipepar, with the devices in any order."""
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
        """Return the smallest bottleneck of any split and order of the devices, in seconds.

        By the published times, layer by layer: the optimum that PipeDream's optimizer without
        replicas (Narayanan et al., SOSP 2019) and PipeEdge's scheduler (Hu et al., DSD 2022)
        search for.
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
    index = kinds.index(kind)
    return (*kinds[:index], *kinds[index + 1 :])


def examples() -> list[Example]:
    """Return the examples of this folder, sorted by file name."""
    return [_read(path) for path in sorted(_FOLDER.glob("*.json"))]


def _read(path: Path) -> Example:
    stored = json.loads(path.read_text(encoding="utf-8"))
    kinds = tuple(stored["devices"])
    _, *columns, crossing = zip(*stored["layers"], strict=True)
    return Example(
        name=stored["name"],
        source=stored["source"],
        files=f"costs: {stored['costs']}; split: {stored['split']}; {stored['note']}",
        seconds={
            kind: tuple(value * stored["seconds"] for value in column)
            for kind, column in zip(dict.fromkeys(kinds), columns, strict=True)
        },
        crossing=tuple(float(size) * stored["bytes"] for size in crossing),
        links={
            name: LinkCost(bandwidth=math.inf if bandwidth is None else bandwidth)
            for name, bandwidth in stored["bandwidths"].items()
        },
        theirs=Split(tuple(stored["cuts"]), kinds),
    )
