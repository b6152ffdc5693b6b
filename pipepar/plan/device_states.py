"""The states of the search: the devices that the stages so far have taken.

In a given order, stages take neighbouring devices, so a state is a first device and a number of
stages. In a free order, devices of one kind are interchangeable, so a state is the number of
devices taken of each kind. With n devices of each of k kinds there are (n + 1)^k states, instead of
(kn)! orders. Where links differ by the kinds they join, a state also contains the kind of the last
stage.
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
class Transitions:
    """E transitions that add a stage on one kind of device, after one kind of link."""

    device: DeviceCost
    """The device of the added stage."""
    link: LinkCost
    """The link that carries its inputs; unused for the first stage."""
    source: Integers
    """[E] states before the stage is added."""
    target: Integers
    """[E] states after it is added, ascending and all different."""
    taken: Integers
    """[E] index of the device that is taken."""


@dataclass(frozen=True, slots=True)
class DeviceStates:
    """S states, and the transitions between them."""

    transitions: tuple[Transitions, ...]
    """The transitions, grouped by kind of device and link."""
    stages: Integers
    """[S] number of stages."""
    starts: Integers
    """Indices of the states in which a search begins; they have no stage."""
    ends: Integers
    """Indices of the states in which a search may end."""


def in_order(
    devices: Sequence[DeviceCost], links: Sequence[LinkCost], fewer: bool, most: int
) -> DeviceStates:
    """Return the states where stages take the devices in the given order.

    Args:
        devices: all devices, in order.
        links: links[k] joins the devices at k and k + 1.
        fewer: whether stages may take any run of neighbours; otherwise they take all devices.
        most: the largest number of states allowed.

    Raises:
        PlanError: there are more than `most` states.
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
        transitions=tuple(Transitions(*kind, *np.array(ways).T) for kind, ways in edges.items()),
        stages=past_of - first_of,
        starts=np.flatnonzero(past_of == first_of),
        ends=np.flatnonzero(past_of > first_of if fewer else past_of == count),
    )


def in_any_order(
    devices: Sequence[DeviceCost], link: LinkOf, fewer: bool, most: int
) -> DeviceStates:
    """Return the states where any stage may take any device.

    Args:
        devices: all devices; equal ones are interchangeable.
        link: returns the link between two devices; it depends only on their kinds.
        fewer: whether devices may be left out; otherwise stages take all of them.
        most: the largest number of states allowed.

    Raises:
        PlanError: there are more than `most` states.
    """
    kinds: dict[DeviceCost, list[int]] = {}
    for index, device in enumerate(devices):
        kinds.setdefault(device, []).append(index)
    links = {pair: link(*pair) for pair in permutations(devices, 2)}
    # If links differ, the last digit of a state's number is the kind of its last stage.
    lasts = len(kinds) if len(set(links.values())) > 1 else 1
    shape = [len(members) + 1 for members in kinds.values()]
    _check_few(math.prod(shape) * lasts, most)
    counts = np.indices(shape).reshape(len(shape), -1)  # [kinds, sets]
    transitions = tuple(_transitions(kinds, links, lasts, counts))
    stages = np.repeat(counts.sum(axis=0), lasts)
    return DeviceStates(
        transitions=transitions,
        stages=stages,
        starts=np.array([0]),
        ends=np.flatnonzero(stages > 0 if fewer else stages == len(devices)),
    )


def _transitions(
    kinds: Mapping[DeviceCost, list[int]],
    links: Mapping[tuple[DeviceCost, DeviceCost], LinkCost],
    lasts: int,
    counts: Integers,
) -> Iterator[Transitions]:
    """Yield the transitions to a first stage, and from each kind of last stage to each kind.

    Args:
        kinds: the indices of the devices of each kind.
        links: the link between two kinds.
        lasts: the number of kinds of last stage in a state's number; 1 if links are all alike.
        counts: [kinds, sets] number of devices taken of each kind.
    """
    for number, (device, members) in enumerate(kinds.items()):
        further = math.prod(len(others) + 1 for others in list(kinds.values())[number + 1 :])
        own = number if lasts > 1 else 0
        first = further * lasts + own
        yield Transitions(
            device, LinkCost(), np.array([0]), np.array([first]), np.array(members[:1])
        )
        for last, before in enumerate(list(kinds)[:lasts]):
            there = counts[last] > 0 if lasts > 1 else counts.any(axis=0)
            sets = np.flatnonzero(there & (counts[number] < len(members)))
            if len(sets):
                link = links[before, device] if lasts > 1 else next(iter(links.values()))
                source, target = sets * lasts + last, (sets + further) * lasts + own
                taken = np.array(members)[counts[number, sets]]
                yield Transitions(device, link, source, target, taken)


def _check_few(states: int, most: int) -> None:
    if states > most:
        raise PlanError(
            f"found {states:,} sets of devices to search, expected at most {most:,} for a model "
            f"with this many cuts; give similar devices the same speed and memory, keep the order "
            f"of the devices, or leave no device out"
        )
