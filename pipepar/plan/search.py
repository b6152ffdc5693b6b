"""The best way through a row of places, with the devices taken so far as the state.

A dynamic programme over (place, devices taken): the best partition of what lies before the place
extends a best one of what lies before the last stage. It generalises the programme of PipeDream
(Narayanan et al., SOSP 2019, section 3.1) to devices that differ. Both questions are one programme:
the fewest bytes and then the smallest bottleneck, under a limit on the bottleneck; with no price
on bytes, what remains is the smallest bottleneck.

Two bounds keep it fast and leave it exact. A stage within the limit begins in a window before its
end; and a state counts at a place only if the devices taken can have done what lies before the
place within the limit, and those left can do the rest, were there no links. So the search for the
bottleneck begins just above what would do without links, and widens it until there is a partition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pipepar.plan.device_states import DeviceStates, Step
from pipepar.plan.prefix_sums import Floats, Integers, PrefixSums

# Rounding in a sum of costs must not exclude the partition that defines the bottleneck.
ROUNDING = 1e-9


def smallest_bottleneck(
    sums: PrefixSums, device_states: DeviceStates, fewer: bool
) -> tuple[float, Integers] | None:
    """What a partition within memory can reach at best.

    Args:
        sums: the model.
        device_states: the devices.
        fewer: whether the fewest stages that reach it are wanted.

    Returns:
        Seconds, and the last states that may be asked for; None if no partition fits.
    """
    for limit in _widening(*_bounds(sums, device_states)):
        worst = Table(sums, device_states, np.zeros_like(sums.crossing), limit).worst[
            -1, device_states.ends
        ]
        best = float(worst.min())
        if best < np.inf:
            reach_it = device_states.ends[worst <= best * (1 + ROUNDING)]
            fewest = device_states.stages[reach_it].min()
            same = device_states.stages[device_states.ends] == fewest
            return best, device_states.ends[same] if fewer else device_states.ends
    return None


def _widening(least: float, most: float) -> Iterator[float]:
    """Limits from just above the least to the most."""
    margin = 0.02
    while 0 < (limit := least * (1 + margin)) < most:
        yield limit
        margin *= 2
    yield most * (1 + ROUNDING)


def _bounds(sums: PrefixSums, device_states: DeviceStates) -> tuple[float, float]:
    """Seconds just below what would do without links, and seconds that no bottleneck is above."""
    reach = _Reach(sums, device_states)
    alone = [sums.work[device.kind][-1] / device.speed for device in reach.devices]
    longest = max(_transfer(sums, step).max() for step in device_states.steps)
    most = high = float(max(longest, *alone))
    least = most * ROUNDING
    while least * 1.01 < high:
        middle = least * math.sqrt(high / least)
        if reach.earliest(reach.first(middle))[device_states.starts].min() > 0:
            least = middle
        else:
            high = middle
    return least, most


def _transfer(sums: PrefixSums, step: Step) -> Floats:
    """Seconds for a stage's inputs, by the place where it begins; the first receives nothing."""
    seconds = step.link.latency + sums.crossing / step.link.bandwidth
    seconds[0] = 0.0
    return np.asarray(seconds)


class _Reach:
    """How far devices come if links took no time, and memory held nothing but weights.

    Then it is best for a stage to begin as early, or end as late, as it can, so that one way
    through the states is enough.
    """

    def __init__(self, sums: PrefixSums, device_states: DeviceStates) -> None:
        self._sums, self._count = sums, len(device_states.stages)
        self.devices = list(dict.fromkeys(step.device for step in device_states.steps))
        number = {device: index for index, device in enumerate(self.devices)}
        device = [np.full(len(step.source), number[step.device]) for step in device_states.steps]
        source = [step.source for step in device_states.steps]
        target = [step.target for step in device_states.steps]
        edges = np.stack([np.concatenate(column) for column in (device, source, target)])
        stages = device_states.stages[edges[2]]
        order = np.argsort(stages, kind="stable")
        # By how many stages there are: [3, edges].
        self._waves = np.split(edges[:, order], np.flatnonzero(np.diff(stages[order])) + 1, axis=1)

    def first(self, limit: float) -> Integers:
        """[D, P] where a stage that ends at a place may begin at the earliest, by device."""
        weights, firsts = self._sums.weights, []
        for device in self.devices:
            work = self._sums.work[device.kind]
            farthest = work - limit * device.speed - work[-1] * ROUNDING
            fullest = weights - device.memory
            first = np.searchsorted(work, farthest), np.searchsorted(weights, fullest)
            firsts.append(np.maximum(*first))
        return np.stack(firsts)

    def earliest(self, first: Integers) -> Integers:
        """[S] the first place from which the devices left can go on to the end."""
        places = np.full(self._count, first.shape[1] - 1)
        for device, source, target in reversed(self._waves):
            np.minimum.at(places, source, first[device, places[target]])
        return places

    def latest(self, first: Integers) -> Integers:
        """[S] the last place that the devices taken can come to."""
        every = np.arange(first.shape[1])
        last = np.stack([np.searchsorted(each, every, side="right") - 1 for each in first])
        places = np.zeros(self._count, dtype=np.intp)
        for device, source, target in self._waves:
            np.maximum.at(places, target, last[device, places[source]])
        return places


class _Move:
    """One kind of step, and where it may be taken within a limit.

    Args:
        sums: the model, P places.
        step: what is taken, E ways.
        limit: the largest bottleneck allowed, in seconds.
        first: [P] where a stage that ends at a place may begin at the earliest.
        earliest: [E] the first place from which the rest can go on.
        latest: [E] the last place that can be come to.
    """

    def __init__(
        self,
        sums: PrefixSums,
        step: Step,
        limit: float,
        first: Integers,
        earliest: Integers,
        latest: Integers,
    ) -> None:
        self.step, self._sums, self._limit = step, sums, limit
        self._work, self._transfer = sums.work[step.device.kind], _transfer(sums, step)
        # A stage needs work of its own, unless it is the whole model.
        self._past = np.searchsorted(sums.done, sums.done)
        self._past[-1] = max(self._past[-1], 1)
        self._first, self._earliest, self._latest = first, earliest, latest
        self.opens, self.closes = int(earliest.min()), int(latest.max())

    def edges(self, place: int) -> Integers:
        """The ways to take this step with a stage that ends at a place."""
        return np.flatnonzero((self._earliest <= place) & (place <= self._latest))

    def stages(self, place: int) -> tuple[Integers, Floats]:
        """Where a stage that ends at a place may begin, and its seconds."""
        first, past = self._first[place], self._past[place]
        if first >= past:
            return np.array([], dtype=np.intp), np.array([])
        work = self._work[place] - self._work[first:past]
        seconds = np.maximum(work / self.step.device.speed, self._transfer[first:past])
        memory = self._sums.memory(first, place)[: past - first]
        fits = (seconds <= self._limit) & (memory <= self.step.device.memory)
        begins = np.flatnonzero(fits)
        return first + begins, seconds[begins]


def _moves(sums: PrefixSums, device_states: DeviceStates, limit: float) -> Iterator[_Move]:
    """One for each kind of step, in order."""
    reach = _Reach(sums, device_states)
    first = reach.first(limit)
    earliest, latest = reach.earliest(first), reach.latest(first)
    of_device = dict(zip(reach.devices, first, strict=True))
    for step in device_states.steps:
        at = step.target
        yield _Move(sums, step, limit, of_device[step.device], earliest[at], latest[at])


class Table:
    """The best partition up to each place with each state, within a limit.

    Args:
        sums: the model, P places.
        device_states: the devices, S states.
        price: [P] what each cut costs.
        limit: the largest bottleneck allowed, in seconds.
    """

    def __init__(
        self, sums: PrefixSums, device_states: DeviceStates, price: Floats, limit: float
    ) -> None:
        self._sums, self._takers, self._price, self._limit = sums, device_states, price, limit
        shape = (len(sums.done), len(device_states.stages))
        self.total = np.full(shape, np.inf)
        """[P, S] price of the best partition; infinite where there is none."""
        self.worst = np.full(shape, np.inf)
        """[P, S] its bottleneck in seconds."""
        self.total[0, device_states.starts] = self.worst[0, device_states.starts] = 0.0
        self._begin = np.zeros(shape, dtype=np.int32)
        self._step = np.zeros(shape, dtype=np.int16)
        moves = list(_moves(sums, device_states, limit))
        for place in range(1, len(sums.done)):
            for number, move in enumerate(moves):
                if move.opens <= place <= move.closes:
                    self._extend(place, number, move)

    def _extend(self, place: int, number: int, move: _Move) -> None:
        """Take the stages that end at a place by one kind of step, where they are better."""
        begins, seconds = move.stages(place)
        edges = move.edges(place)
        if not len(begins) or not len(edges):
            return
        source, target = move.step.source[edges], move.step.target[edges]
        before = np.ix_(begins, source)
        sums = self.total[before] + self._price[begins, None]  # [begins, edges]
        least = sums.min(axis=0)
        slowest = np.maximum(self.worst[before], seconds[:, None])
        slowest[sums > least] = np.inf
        chosen = slowest.argmin(axis=0)
        worst = slowest[chosen, np.arange(len(edges))]
        known = self.total[place, target]
        better = (least < known) | ((least == known) & (worst < self.worst[place, target]))
        at = target[better]
        self.total[place, at], self.worst[place, at] = least[better], worst[better]
        self._begin[place, at], self._step[place, at] = begins[chosen[better]], number

    def best(self, ends: Integers) -> tuple[tuple[int, ...], tuple[int, ...], float]:
        """The cheapest partition that ends in one of these states, and of those the fastest.

        Returns:
            Its cuts, the devices of its stages, and its bottleneck in seconds.
        """
        state = int(ends[np.lexsort((self.worst[-1, ends], self.total[-1, ends]))[0]])
        place, bottleneck = len(self._sums.done) - 1, float(self.worst[-1, state])
        begins, devices = [], []
        while place > 0:
            step = self._takers.steps[self._step[place, state]]
            place = int(self._begin[place, state])
            edge = int(np.searchsorted(step.target, state))
            state = int(step.source[edge])
            begins.append(int(self._sums.position[place]))
            devices.append(int(step.taken[edge]))
        return tuple(begins[:-1][::-1]), tuple(devices[::-1]), bottleneck
