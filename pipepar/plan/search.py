"""The search for the best partition, with the devices taken so far as the state.

It is a dynamic programme over (place, state). The best partition of the layers before a place
extends a best partition of the layers before its last stage. This generalises the programme of
PipeDream (Narayanan et al., SOSP 2019, section 3.1) to devices that differ. The programme minimises
the crossing bytes, and then the bottleneck, under a limit on the bottleneck. With a price of 0 on
bytes it finds the smallest bottleneck.

Two bounds make it fast, and keep it exact. First, the limit bounds the length of a stage, so only
places close enough before its end are tried as its begin. Second, a state is possible at a place
only if, without links, the devices taken can compute the layers before the place within the limit,
and the devices left can compute the rest. The second bound excludes most if the limit is small. So
the search for the bottleneck begins with a limit just above the bottleneck without links, and
raises the limit until there is a partition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from pipepar.plan.device_states import DeviceStates, Transitions
from pipepar.plan.prefix_sums import Floats, Integers, PrefixSums

# Rounding in a sum of costs must not exclude the partition that defines the bottleneck.
ROUNDING = 1e-9


def smallest_bottleneck(
    sums: PrefixSums, device_states: DeviceStates, fewer: bool
) -> tuple[float, Integers] | None:
    """Return the smallest bottleneck of all partitions that fit in memory.

    Args:
        sums: the model.
        device_states: the devices.
        fewer: whether to accept only the smallest number of stages that reaches it.

    Returns:
        The bottleneck in seconds, and the final states to accept: all, or with `fewer` those with
        the fewest stages that reach it. None if no partition fits.
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
    """Yield growing limits, from 2 % above `least` to just above `most`."""
    margin = 0.02
    while 0 < (limit := least * (1 + margin)) < most:
        yield limit
        margin *= 2
    yield most * (1 + ROUNDING)


def _bounds(sums: PrefixSums, device_states: DeviceStates) -> tuple[float, float]:
    """Return a lower and an upper bound of the bottleneck, in seconds.

    The lower bound is at most 1 % below the bottleneck of the relaxed problem; see `_Reach`.
    """
    reach = _Reach(sums, device_states)
    alone = [sums.work[device.kind][-1] / device.speed for device in reach.devices]
    longest = max(_transfer(sums, group).max() for group in device_states.transitions)
    most = high = float(max(longest, *alone))
    least = most * ROUNDING
    while least * 1.01 < high:
        middle = least * math.sqrt(high / least)
        if reach.earliest(reach.first(middle))[device_states.starts].min() > 0:
            least = middle
        else:
            high = middle
    return least, most


def _transfer(sums: PrefixSums, group: Transitions) -> Floats:
    """Return [P] the seconds in which a stage that begins at a place receives a micro-batch."""
    seconds = group.link.latency + sums.crossing / group.link.bandwidth
    seconds[0] = 0.0  # the first stage receives nothing
    return np.asarray(seconds)


class _Reach:
    """The relaxed problem: links take no time, and only weights take memory.

    In it, each stage should begin as early, or end as late, as possible, so one pass over the
    states finds the places that each state can reach.
    """

    def __init__(self, sums: PrefixSums, device_states: DeviceStates) -> None:
        self._sums, self._count = sums, len(device_states.stages)
        self.devices = list(dict.fromkeys(group.device for group in device_states.transitions))
        number = {device: index for index, device in enumerate(self.devices)}
        device = [
            np.full(len(group.source), number[group.device]) for group in device_states.transitions
        ]
        source = [group.source for group in device_states.transitions]
        target = [group.target for group in device_states.transitions]
        edges = np.stack([np.concatenate(column) for column in (device, source, target)])
        stages = device_states.stages[edges[2]]
        order = np.argsort(stages, kind="stable")
        # [3, edges] (device, source, target), split by the number of stages.
        self._waves = np.split(edges[:, order], np.flatnonzero(np.diff(stages[order])) + 1, axis=1)

    def first(self, limit: float) -> Integers:
        """Return [D, P] the earliest begin of a stage within the limit, by device and end."""
        weights, firsts = self._sums.weights, []
        for device in self.devices:
            work = self._sums.work[device.kind]
            farthest = work - limit * device.speed - work[-1] * ROUNDING
            fullest = weights - device.memory
            first = np.searchsorted(work, farthest), np.searchsorted(weights, fullest)
            firsts.append(np.maximum(*first))
        return np.stack(firsts)

    def earliest(self, first: Integers) -> Integers:
        """Return [S] the first place from which the devices left can reach the end."""
        places = np.full(self._count, first.shape[1] - 1)
        for device, source, target in reversed(self._waves):
            np.minimum.at(places, source, first[device, places[target]])
        return places

    def latest(self, first: Integers) -> Integers:
        """Return [S] the last place that the devices taken can reach."""
        every = np.arange(first.shape[1])
        last = np.stack([np.searchsorted(each, every, side="right") - 1 for each in first])
        places = np.zeros(self._count, dtype=np.intp)
        for device, source, target in self._waves:
            np.maximum.at(places, target, last[device, places[source]])
        return places


class _Bounded:
    """One group of transitions, with the places where they are possible within a limit.

    Args:
        sums: the model, P places.
        group: E transitions to one kind of device, over one kind of link.
        limit: the largest bottleneck allowed, in seconds.
        first: [P] the earliest begin of a stage that ends at a place.
        earliest: [E] the first place from which the devices left can reach the end.
        latest: [E] the last place that the devices taken can reach.
    """

    def __init__(
        self,
        sums: PrefixSums,
        group: Transitions,
        limit: float,
        first: Integers,
        earliest: Integers,
        latest: Integers,
    ) -> None:
        self.group, self._sums, self._limit = group, sums, limit
        self._work, self._transfer = sums.work[group.device.kind], _transfer(sums, group)
        # Every stage needs work, except a stage that is the whole model.
        self._past = np.searchsorted(sums.done, sums.done)
        self._past[-1] = max(self._past[-1], 1)
        self._first, self._earliest, self._latest = first, earliest, latest
        self.opens, self.closes = int(earliest.min()), int(latest.max())

    def edges(self, place: int) -> Integers:
        """Return the indices of the transitions that may add a stage which ends at `place`."""
        return np.flatnonzero((self._earliest <= place) & (place <= self._latest))

    def stages(self, place: int) -> tuple[Integers, Floats]:
        """Return the places where a stage that ends at `place` may begin, and its seconds for each.

        The seconds are the larger of its time to compute and its time to receive.
        """
        first, past = self._first[place], self._past[place]
        if first >= past:
            return np.array([], dtype=np.intp), np.array([])
        work = self._work[place] - self._work[first:past]
        seconds = np.maximum(work / self.group.device.speed, self._transfer[first:past])
        memory = self._sums.memory(first, place)[: past - first]
        fits = (seconds <= self._limit) & (memory <= self.group.device.memory)
        begins = np.flatnonzero(fits)
        return first + begins, seconds[begins]


def _bounded(sums: PrefixSums, device_states: DeviceStates, limit: float) -> Iterator[_Bounded]:
    """Yield each group of transitions, in order, with its bounds."""
    reach = _Reach(sums, device_states)
    first = reach.first(limit)
    earliest, latest = reach.earliest(first), reach.latest(first)
    of_device = dict(zip(reach.devices, first, strict=True))
    for group in device_states.transitions:
        at = group.target
        yield _Bounded(sums, group, limit, of_device[group.device], earliest[at], latest[at])


class Table:
    """The best partition up to each place for each state, within a limit.

    Args:
        sums: the model, P places.
        device_states: the devices, S states.
        price: [P] the price of a cut at each place.
        limit: the largest bottleneck allowed, in seconds.
    """

    def __init__(
        self, sums: PrefixSums, device_states: DeviceStates, price: Floats, limit: float
    ) -> None:
        self._sums, self._device_states, self._price = sums, device_states, price
        shape = (len(sums.done), len(device_states.stages))
        self.total = np.full(shape, np.inf)
        """[P, S] total price of the best partition; infinite if there is none."""
        self.worst = np.full(shape, np.inf)
        """[P, S] its bottleneck, in seconds."""
        self.total[0, device_states.starts] = self.worst[0, device_states.starts] = 0.0
        self._begin = np.zeros(shape, dtype=np.int32)
        self._group = np.zeros(shape, dtype=np.int16)
        groups = list(_bounded(sums, device_states, limit))
        for place in range(1, len(sums.done)):
            for number, bounded in enumerate(groups):
                if bounded.opens <= place <= bounded.closes:
                    self._extend(place, number, bounded)

    def _extend(self, place: int, number: int, bounded: _Bounded) -> None:
        """Store the partitions whose last stage ends at `place`, where they are better.

        Args:
            place: the end of the last stage.
            number: the index of the group of transitions.
            bounded: that group.
        """
        begins, seconds = bounded.stages(place)
        edges = bounded.edges(place)
        if not len(begins) or not len(edges):
            return
        source, target = bounded.group.source[edges], bounded.group.target[edges]
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
        self._begin[place, at], self._group[place, at] = begins[chosen[better]], number

    def best(self, ends: Integers) -> tuple[tuple[int, ...], tuple[int, ...], float]:
        """Return the cheapest partition that ends in one of these states; of equals, the fastest.

        Args:
            ends: the final states to accept; at least one has a partition.

        Returns:
            Its cuts, the index of the device of each stage, and its bottleneck in seconds.
        """
        state = int(ends[np.lexsort((self.worst[-1, ends], self.total[-1, ends]))[0]])
        place, bottleneck = len(self._sums.done) - 1, float(self.worst[-1, state])
        begins, devices = [], []
        while place > 0:
            group = self._device_states.transitions[self._group[place, state]]
            place = int(self._begin[place, state])
            edge = int(np.searchsorted(group.target, state))
            state = int(group.source[edge])
            begins.append(int(self._sums.position[place]))
            devices.append(int(group.taken[edge]))
        return tuple(begins[:-1][::-1]), tuple(devices[::-1]), bottleneck
