"""What a partition takes, and whether what is predicted of a plan comes true.

    python -m benchmarks.planner [--repetitions R]

First the search for cuts and devices, on models and devices made of numbers. Layers differ in work,
memory and what crosses, as a seed says. Equal devices, devices that all differ in a given order
with links that all differ, and devices of three kinds in any order, the last with little memory
too, with links that depend on the kinds, and with work that does.

Then real jobs, see forecast.py; two hosts for one of them need root.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from benchmarks.forecast import forecasts
from benchmarks.report import Figure, Goal, Report
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import DeviceUse, Links, partition

_LAYERS: Final = (100, 300, 1000)
_DEVICES: Final = (4, 16, 64)
_LINK: Final = LinkCost(latency=1e-5, bandwidth=1e10)

Layers = Callable[[int], list[LayerCost]]
Case = tuple[list[DeviceCost], Links, bool]


def layers_of(count: int) -> list[LayerCost]:
    """A row of layers, the same each time; a third may not be cut before."""
    draw = random.Random(count)
    return [
        LayerCost(
            work=draw.uniform(1e9, 1e10),
            weights=draw.uniform(1e6, 1e7),
            workspace=draw.uniform(1e6, 1e7),
            crossing=draw.choice([None, draw.uniform(1e5, 1e6), draw.uniform(1e5, 1e6)]),
        )
        for _ in range(count)
    ]


def layers_by_kind(count: int) -> list[LayerCost]:
    """The same, but each of three kinds of device finds other layers hard."""
    draw = random.Random(count)
    return [
        replace(layer, work={kind: draw.uniform(1e9, 1e10) for kind in "abc"})
        for layer in layers_of(count)
    ]


def alike(count: int) -> Case:
    """Equal devices, in their order."""
    return [DeviceCost(1e12, 1e10)] * count, [_LINK] * (count - 1), False


def unlike(count: int) -> Case:
    """Devices and links that all differ, in their order."""
    draw = random.Random(count)
    devices = [DeviceCost(draw.uniform(1e12, 4e12), draw.uniform(1e10, 4e10)) for _ in range(count)]
    links = [LinkCost(1e-5, draw.uniform(1e9, 1e10)) for _ in range(count - 1)]
    return devices, links, False


def three_kinds(count: int) -> Case:
    """Devices of three kinds, in any order."""
    kinds = (
        DeviceCost(1e12, 1e10, "a"),
        DeviceCost(2e12, 2e10, "b"),
        DeviceCost(4e12, 1e10, "c"),
    )
    return [kinds[index % 3] for index in range(count)], [_LINK] * (count - 1), True


def tight(count: int) -> Case:
    """The same with little more memory than the model needs, so that memory decides."""
    devices, links, free_order = three_kinds(count)
    weights = sum(layer.weights for layer in layers_of(_LAYERS[-1]))
    room = 1.6 * weights / count
    return [replace(device, memory=room) for device in devices], links, free_order


def unlike_links(count: int) -> Case:
    """Devices of three kinds, in any order, behind links that depend on both kinds."""
    devices, _, free_order = three_kinds(count)
    names = sorted({device.kind for device in devices})
    links = {
        frozenset((one, other)): LinkCost(1e-5, 1e9 * (1 + i + j))
        for i, one in enumerate(names)
        for j, other in enumerate(names)
    }
    return devices, links, free_order


_CASES: Final[
    list[tuple[str, Layers, Callable[[int], Case], tuple[int, ...], tuple[int, ...], float]]
] = [
    ("equal devices", layers_of, alike, _LAYERS, _DEVICES, 1),
    ("all different, in order", layers_of, unlike, _LAYERS, _DEVICES, 1),
    ("three kinds, any order", layers_of, three_kinds, _LAYERS, _DEVICES, 10),
    ("three kinds, little memory", layers_of, tight, (1000,), (64,), 10),
    ("three kinds, links by kind", layers_of, unlike_links, (1000,), (64,), 10),
    ("three kinds, work by kind, any order", layers_by_kind, three_kinds, (1000,), (64,), 10),
]


def measured(layers: Sequence[LayerCost], case: Case, repetitions: int) -> Figure:
    """Seconds to solve it."""
    devices, links, free_order = case
    values = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        partition(layers, devices, links, DeviceUse(free_order))
        values.append(time.perf_counter() - begin)
    return Figure(tuple(values))


def main() -> int:
    """Solve again and again, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3, help="for each [3]")
    repetitions = parser.parse_args().repetitions
    report = Report("planner: cuts and devices from numbers alone, then jobs", ranks=1)
    goals: list[Goal] = []
    for name, layers, case, sizes, counts, limit in _CASES:
        rows: list[list[str | Figure]] = []
        for size in sizes:
            figures = [measured(layers(size), case(count), repetitions) for count in counts]
            rows.append([str(size), *figures])
        report.table(name, ["layers", *(f"{count} devices, seconds" for count in counts)], rows)
        what = f"{name}, {sizes[-1]} layers on {counts[-1]}: seconds"
        goals.append(Goal(what, "at most", limit, figures[-1]))
    goals += forecasts(report, repetitions)
    report.goals(goals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
