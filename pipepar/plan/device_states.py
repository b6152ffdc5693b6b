"""Which devices the stages so far have taken: the states that a search goes through.

In a given order a state is a first device and how many stages there are, since stages take
neighbours. In a free order devices of one kind are interchangeable, so a state is how many of each
kind are taken: with n devices of each of k kinds that is (n + 1)^k states, instead of (kn)! orders.
Where links differ by the kinds they join, a state knows the kind of the last stage as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from pipepar.errors import PlanError
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.prefix_sums import Integers

LinkOf = Callable[[DeviceCost, DeviceCost], LinkCost]


@dataclass(frozen=True, slots=True)
class Step:
    """One more stage, on a device of one kind, behind a link of one kind: E ways to take it."""

    device: DeviceCost
    """What computes the stage."""
    link: LinkCost
    """What brings its inputs; of no meaning for the first stage."""
    source: Integers
    """[E] states without that stage."""
    target: Integers
    """[E] states with it, ascending and all different."""
    taken: Integers
    """[E] which device it is."""


@dataclass(frozen=True, slots=True)
class DeviceStates:
    """All states, S of them, and the steps between them."""

    steps: tuple[Step, ...]
    """By kind of device and link."""
    stages: Integers
    """[S] how many stages there are."""
    starts: Integers
    """States before the first stage."""
    ends: Integers
    """States that may be the last."""


def in_order(
    devices: Sequence[DeviceCost], links: Sequence[LinkCost], fewer: bool, most: int
) -> DeviceStates:
    """Stages take neighbours in the order given: all, or a run of them if `fewer`.

    Raises:
        PlanError: this makes more than `most` states.
    """
    count = len(devices)
    _check_few((count + 1) * (count + 2) // 2 if fewer else count + 1, most)
    firsts = range(count if fewer else 1)
    states = [(first, past) for first in firsts for past in range(first, count + 1)]
    number = {state: index for index, state in enumerate(states)}
    edges: dict[tuple[DeviceCost, LinkCost], list[tuple[int, int, int]]] = {}
    for first, past in states:
        if past > first:
            taken = past - 1
            link = links[max(taken - 1, 0)] if links else LinkCost()
            edge = (number[first, taken], number[first, past], taken)
            edges.setdefault((devices[taken], link), []).append(edge)
    first_of, past_of = np.array(states).T
    return DeviceStates(
        steps=tuple(Step(*kind, *np.array(ways).T) for kind, ways in edges.items()),
        stages=past_of - first_of,
        starts=np.flatnonzero(past_of == first_of),
        ends=np.flatnonzero(past_of > first_of if fewer else past_of == count),
    )


def in_any_order(
    devices: Sequence[DeviceCost], link: LinkOf, fewer: bool, most: int
) -> DeviceStates:
    """Any stage takes any device: all of them, or some if `fewer`.

    Args:
        devices: all there are; equal ones are interchangeable.
        link: what joins two devices; one for any two of the same kinds.
        fewer: whether devices may be left out.
        most: how many states are allowed.

    Raises:
        PlanError: this makes more than `most` states.
    """
    kinds: dict[DeviceCost, list[int]] = {}
    for index, device in enumerate(devices):
        kinds.setdefault(device, []).append(index)
    links = {pair: link(*pair) for pair in permutations(devices, 2)}
    # If it matters, a state's number ends with the kind of its last stage.
    lasts = len(kinds) if len(set(links.values())) > 1 else 1
    shape = [len(members) + 1 for members in kinds.values()]
    _check_few(math.prod(shape) * lasts, most)
    counts = np.indices(shape).reshape(len(shape), -1)  # [kinds, sets]
    steps = tuple(_steps(kinds, links, lasts, counts))
    stages = np.repeat(counts.sum(axis=0), lasts)
    return DeviceStates(
        steps=steps,
        stages=stages,
        starts=np.array([0]),
        ends=np.flatnonzero(stages > 0 if fewer else stages == len(devices)),
    )


def _steps(
    kinds: Mapping[DeviceCost, list[int]],
    links: Mapping[tuple[DeviceCost, DeviceCost], LinkCost],
    lasts: int,
    counts: Integers,
) -> Iterator[Step]:
    """A first stage on each kind of device, and one more behind each kind, or behind any."""
    for number, (device, members) in enumerate(kinds.items()):
        further = math.prod(len(others) + 1 for others in list(kinds.values())[number + 1 :])
        own = number if lasts > 1 else 0
        first = further * lasts + own
        yield Step(device, LinkCost(), np.array([0]), np.array([first]), np.array(members[:1]))
        for last, before in enumerate(list(kinds)[:lasts]):
            there = counts[last] > 0 if lasts > 1 else counts.any(axis=0)
            sets = np.flatnonzero(there & (counts[number] < len(members)))
            if len(sets):
                link = links[before, device] if lasts > 1 else next(iter(links.values()))
                source, target = sets * lasts + last, (sets + further) * lasts + own
                taken = np.array(members)[counts[number, sets]]
                yield Step(device, link, source, target, taken)


def _check_few(states: int, most: int) -> None:
    if states > most:
        raise PlanError(
            f"found {states:,} sets of devices that the stages so far may have taken, expected at "
            f"most {most:,} for a model with as many cuts; give alike devices the same speed and "
            f"memory, keep the order of the devices, or leave none out"
        )
