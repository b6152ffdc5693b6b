"""Time of the search for cuts and devices, on models and devices that consist of numbers.

Layers differ in work, memory and crossing bytes, by a seed. Devices are equal; or all different in
a given order, with links that all differ; or of three kinds in any order: the last also with little
memory, with links that depend on the kinds, and with work that depends on the kind.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import Figure, Row
from benchmarks.shared.run import Run
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import DeviceUse, Links, partition

_LINK: Final = LinkCost(latency=1e-5, bandwidth=1e10)
_MOST_LAYERS: Final = 1000

Devices: TypeAlias = tuple[list[DeviceCost], Links, bool]
"""Devices, the links between them, and whether their order is free."""


@dataclass(frozen=True, slots=True)
class Case:
    """Models and devices of one kind."""

    name: str
    """The name in the report."""
    devices: Callable[[int], Devices]
    """Makes a number of devices."""
    limit: float
    """The goal for the largest model and the most devices, seconds."""
    layers: Callable[[int], list[LayerCost]]
    """Makes a number of layers."""
    sizes: tuple[int, ...] = (_MOST_LAYERS,)
    """The numbers of layers."""
    counts: tuple[int, ...] = (64,)
    """The numbers of devices."""

    @property
    def goal(self) -> Goal:
        """The goal for the largest model and the most devices."""
        what = f"{self.name}, {self.sizes[-1]} layers on {self.counts[-1]}: seconds"
        return Goal(what, "at most", self.limit)


def layers_of(count: int) -> list[LayerCost]:
    """Return random layers, the same for each call; no cut is allowed before a third of them."""
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
    """Return the same layers with different work on each of three kinds of device."""
    draw = random.Random(count)
    return [
        replace(layer, work={kind: draw.uniform(1e9, 1e10) for kind in "abc"})
        for layer in layers_of(count)
    ]


def equal_devices(count: int) -> Devices:
    """Return equal devices in their order."""
    return [DeviceCost(1e12, 1e10)] * count, [_LINK] * (count - 1), False


def different_devices(count: int) -> Devices:
    """Return devices and links that all differ, in their order."""
    draw = random.Random(count)
    devices = [DeviceCost(draw.uniform(1e12, 4e12), draw.uniform(1e10, 4e10)) for _ in range(count)]
    links = [LinkCost(1e-5, draw.uniform(1e9, 1e10)) for _ in range(count - 1)]
    return devices, links, False


def three_kinds(count: int) -> Devices:
    """Return devices of three kinds, in any order."""
    kinds = (
        DeviceCost(1e12, 1e10, "a"),
        DeviceCost(2e12, 2e10, "b"),
        DeviceCost(4e12, 1e10, "c"),
    )
    return [kinds[index % 3] for index in range(count)], [_LINK] * (count - 1), True


def little_memory(count: int) -> Devices:
    """Return devices of three kinds with little more memory than the model needs."""
    devices, links, free_order = three_kinds(count)
    weights = sum(layer.weights for layer in layers_of(_MOST_LAYERS))
    memory = 1.6 * weights / count
    return [replace(device, memory=memory) for device in devices], links, free_order


def links_by_kind(count: int) -> Devices:
    """Return devices of three kinds, in any order, with links that depend on both kinds."""
    devices, _, free_order = three_kinds(count)
    names = sorted({device.kind for device in devices})
    links = {
        frozenset((one, other)): LinkCost(1e-5, 1e9 * (1 + i + j))
        for i, one in enumerate(names)
        for j, other in enumerate(names)
    }
    return devices, links, free_order


_SIZES: Final = (100, 300, _MOST_LAYERS)
_COUNTS: Final = (4, 16, 64)
_CASES: Final = (
    Case("equal devices", equal_devices, 1, layers_of, _SIZES, _COUNTS),
    Case("all different, in order", different_devices, 1, layers_of, _SIZES, _COUNTS),
    Case("three kinds, any order", three_kinds, 10, layers_of, _SIZES, _COUNTS),
    Case("three kinds, little memory", little_memory, 10, layers_of),
    Case("three kinds, links by kind", links_by_kind, 10, layers_of),
    Case("three kinds, work by kind, any order", three_kinds, 10, layers_by_kind),
)


def measure(run: Run) -> None:
    """Solve every case several times, and report the seconds."""
    for case in _CASES:
        rows: list[Row] = []
        for size in case.sizes:
            layers = case.layers(size)
            figures = [
                solved(layers, case.devices(count), run.options.repetitions)
                for count in case.counts
            ]
            rows.append([str(size), *figures])
        columns = ["layers", *(f"{count} devices, seconds" for count in case.counts)]
        run.report.table(case.name, columns, rows)
        run.report.goal(case.goal, figures[-1])


def solved(layers: Sequence[LayerCost], devices: Devices, repetitions: int) -> Figure:
    """Return the seconds of a partition."""
    costs, links, free_order = devices
    values = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        partition(layers, costs, links, DeviceUse(free_order))
        values.append(time.perf_counter() - begin)
    return Figure(tuple(values))


BENCHMARK: Final = Benchmark(
    question="how long does the search for cuts and devices take?",
    duration="1 minute",
    measure=measure,
    options=(Option("repetitions", 3, "repetitions of each case"),),
    goals=tuple(case.goal for case in _CASES),
)
