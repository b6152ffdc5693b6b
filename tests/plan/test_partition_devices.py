"""Partitions for devices that differ, compared with all partitions on all choices of devices."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipepar.errors import PlanError
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import DeviceUse, Links, Partition, partition

# Powers of two divide without rounding, so that equal is equal.
powers = st.sampled_from([0.5, 1.0, 2.0, 4.0])
sizes = st.integers(0, 9).map(float)
KINDS = "abc"
by_kind = st.fixed_dictionaries(dict.fromkeys(KINDS, sizes))
memories = st.one_of(st.just(math.inf), st.integers(5, 60).map(float))
device = st.builds(DeviceCost, powers, memories, st.sampled_from(KINDS))
link = st.builds(LinkCost, st.sampled_from([0.0, 1.0, 8.0]), st.one_of(powers, st.just(math.inf)))


@dataclass(frozen=True)
class Problem:
    """The arguments of `partition`."""

    layers: list[LayerCost]
    devices: list[DeviceCost]
    links: Links
    depth: int
    slack: float
    free_order: bool
    fewer: bool

    def solve(self) -> Partition:
        return partition(
            self.layers,
            self.devices,
            self.links,
            DeviceUse(self.free_order, self.fewer),
            depth=self.depth,
            slack=self.slack,
        )


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    devices = draw(st.lists(device, min_size=1, max_size=4))
    free_order = draw(st.booleans())
    joins = len(devices) - 1
    links: Links
    if draw(st.booleans()):
        pairs = itertools.combinations_with_replacement(KINDS, 2)
        links = {frozenset(pair): draw(link) for pair in pairs}
    else:
        links = [draw(link)] * joins if free_order else [draw(link) for _ in range(joins)]
    work = by_kind if draw(st.booleans()) else sizes
    layer = st.builds(LayerCost, work, sizes, sizes, st.one_of(st.none(), sizes, sizes))
    return Problem(
        draw(st.lists(layer, min_size=1, max_size=10)),
        devices,
        links,
        draw(st.integers(0, 3)),
        draw(st.sampled_from([0.0, 0.05, 0.5])),
        free_order,
        draw(st.booleans()),
    )


def choices(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Yield every sequence of devices that the stages may take."""
    count = len(problem.devices)
    for stages in range(1 if problem.fewer else count, count + 1):
        if problem.free_order:
            yield from itertools.permutations(range(count), stages)
        else:
            yield from (tuple(range(a, a + stages)) for a in range(count - stages + 1))


def joining(problem: Problem, one: int, other: int) -> LinkCost:
    """Return the link between two devices."""
    if isinstance(problem.links, Mapping):
        kinds = frozenset((problem.devices[one].kind, problem.devices[other].kind))
        return problem.links[kinds]
    return problem.links[0 if problem.free_order else one]


def bottleneck(problem: Problem, cuts: tuple[int, ...], devices: tuple[int, ...]) -> float:
    """Return the seconds of the slowest stage or link; infinity if a stage does not fit."""
    layers, slowest = problem.layers, 0.0
    for stage, (a, b) in enumerate(itertools.pairwise([0, *cuts, len(layers)])):
        taken = problem.devices[devices[stage]]
        work = sum(layer.work_on(taken.kind) for layer in layers[a:b])
        some = any(layer.work_on(each.kind) for layer in layers[a:b] for each in problem.devices)
        crossing = [layers[p].crossing or 0.0 for p in (a, b) if 0 < p < len(layers)]
        memory = sum(layer.weights for layer in layers[a:b]) + problem.depth * sum(crossing)
        memory += max(layer.workspace for layer in layers[a:b])
        if memory > taken.memory or (cuts and not some):
            return math.inf
        slowest = max(slowest, work / taken.speed)
        if stage:
            joint = joining(problem, devices[stage - 1], devices[stage])
            slowest = max(slowest, joint.seconds(layers[a].crossing or 0.0))
    return slowest


def total(problem: Problem, cuts: tuple[int, ...]) -> float:
    """Return the total bytes that cross."""
    return sum(problem.layers[cut].crossing or 0.0 for cut in cuts)


def every_answer(problem: Problem) -> Iterator[Partition]:
    """Yield every partition that fits."""
    legal = [p for p, layer in enumerate(problem.layers) if p and layer.crossing is not None]
    for devices in choices(problem):
        for cuts in itertools.combinations(legal, len(devices) - 1):
            seconds = bottleneck(problem, cuts, devices)
            if seconds < math.inf:
                yield Partition(cuts, devices, seconds)


@given(problems())
@settings(max_examples=10 * settings().max_examples)
def test_equals_brute_force(problem: Problem) -> None:
    check(problem)


@st.composite
def slow_links(draw: st.DrawFn) -> Problem:
    """Draw a problem where the links of fast devices decide the order."""
    pairs = itertools.combinations_with_replacement(KINDS, 2)
    delays = st.integers(0, 9).map(float)
    return Problem(
        [LayerCost(1.0, crossing=draw(sizes)) for _ in range(draw(st.integers(3, 7)))],
        [DeviceCost(4.0, kind=kind) for kind in draw(st.text(KINDS, min_size=3, max_size=4))],
        {frozenset(pair): LinkCost(draw(delays), bandwidth=draw(powers)) for pair in pairs},
        depth=2,
        slack=0.0,
        free_order=True,
        fewer=False,
    )


@given(slow_links())
@settings(max_examples=3 * settings().max_examples)
def test_links_by_kind_equal_brute_force(problem: Problem) -> None:
    check(problem)


def check(problem: Problem) -> None:
    """Assert that the answer is the best of all, or is refused if there is none."""
    answers = list(every_answer(problem))
    event("some fit" if answers else "none fits")
    if not answers:
        with pytest.raises(PlanError):
            problem.solve()
        return
    best = min(answer.bottleneck for answer in answers)
    stages = min(len(answer.devices) for answer in answers if answer.bottleneck == best)
    allowed = [
        (total(problem, answer.cuts), answer.bottleneck)
        for answer in answers
        if answer.bottleneck <= best * (1 + problem.slack) and len(answer.devices) == stages
    ]
    mine = problem.solve()
    assert mine.bottleneck == bottleneck(problem, mine.cuts, mine.devices)
    assert mine.devices in set(choices(problem))
    assert (total(problem, mine.cuts), mine.bottleneck) == min(allowed)


GIB = 2.0**30
FREE = LinkCost()


def even(count: int, weights: float = 0.0, crossing: float = 1.0) -> list[LayerCost]:
    return [LayerCost(1.0, weights, crossing=crossing) for _ in range(count)]


def test_a_faster_device_takes_more_layers() -> None:
    found = partition(even(8), [DeviceCost(3.0), DeviceCost(1.0)], [FREE])
    assert found == Partition(cuts=(6,), devices=(0, 1), bottleneck=2.0)


def test_a_small_device_takes_only_the_layers_that_fit() -> None:
    found = partition(even(8, weights=1.0), [DeviceCost(1.0, memory=4.0), DeviceCost(1.0)], [FREE])
    # The channel holds two micro-batches of one byte, so two of its four bytes are left.
    assert found.cuts == (2,)


def test_a_slow_link_moves_the_cut() -> None:
    layers = [LayerCost(1.0, crossing=size) for size in (0.0, 9.0, 9.0, 2.0)]
    found = partition(layers, [DeviceCost(1.0)] * 2, [LinkCost(1.0, bandwidth=1.0)])
    assert found == Partition(cuts=(3,), devices=(0, 1), bottleneck=3.0)


def test_free_order_gives_the_large_weights_to_the_large_device() -> None:
    layers = [LayerCost(1.0, 1.0, crossing=0.0), LayerCost(1.0, 9.0, crossing=0.0)]
    devices = [DeviceCost(1.0, memory=9.0), DeviceCost(1.0, memory=1.0)]
    with pytest.raises(PlanError, match="another order"):
        partition(layers, devices, [FREE])
    assert partition(layers, devices, [FREE], DeviceUse(free_order=True)).devices == (1, 0)


def test_a_slow_device_is_left_out() -> None:
    devices = [DeviceCost(4.0), DeviceCost(0.1), DeviceCost(4.0)]
    found = partition(even(4), devices, [FREE] * 2, DeviceUse(free_order=True, fewer=True))
    assert found == Partition(cuts=(2,), devices=(0, 2), bottleneck=0.5)
    # In the given order stages take neighbours, since no link joins the first and the last device.
    assert partition(even(4), devices, [FREE] * 2, DeviceUse(fewer=True)).devices == (0,)


def test_few_cuts_make_fewer_stages_than_devices() -> None:
    layers = [LayerCost(1.0), LayerCost(1.0, crossing=1.0)]
    with pytest.raises(PlanError, match="start at most 2 ranks"):
        partition(layers, [DeviceCost(1.0)] * 3, [FREE] * 2)
    assert partition(layers, [DeviceCost(1.0)] * 3, [FREE] * 2, DeviceUse(fewer=True)).cuts == (1,)


def test_a_layer_too_large_for_every_device_is_named() -> None:
    layers = [*even(2, GIB), LayerCost(1.0, 12 * GIB), *even(1, GIB)]
    message = r"needs 13 GiB for layers \[1, 3\).*at most 8 GiB"
    with pytest.raises(PlanError, match=message):
        partition(layers, [DeviceCost(1.0, 8 * GIB), DeviceCost(1.0, 4 * GIB)], [FREE])


def test_the_error_names_the_total_memory_if_it_is_too_small() -> None:
    with pytest.raises(PlanError, match=r"found 8 GiB of weights, .* 7 GiB.* all 2 devices"):
        partition(even(8, GIB), [DeviceCost(1.0, 3.5 * GIB)] * 2, [FREE])


def test_the_error_names_the_tightest_stage_if_memory_is_almost_enough() -> None:
    layers = [LayerCost(1.0, 2 * GIB, crossing=0.0)] * 3
    with pytest.raises(PlanError, match=r"no way to cut 6 GiB.*needs 2 GiB for layers \[0, 1\)"):
        partition(layers, [DeviceCost(1.0, 3 * GIB)] * 2, [FREE])


def test_free_order_refuses_links_that_differ() -> None:
    with pytest.raises(PlanError, match="found 2 links that differ"):
        partition(even(4), [DeviceCost(1.0)] * 3, [FREE, LinkCost(1.0)], DeviceUse(free_order=True))


def test_free_order_refuses_too_many_kinds() -> None:
    devices = [DeviceCost(1.0 + index) for index in range(20)]
    layers = even(200)
    with pytest.raises(PlanError, match=r"found 1,048,576 sets .* same speed and memory"):
        partition(layers, devices, [FREE] * 19, DeviceUse(free_order=True))


@pytest.mark.parametrize("speed", [0.0, -1.0, math.inf, math.nan])
def test_an_invalid_speed_is_refused(speed: float) -> None:
    with pytest.raises(PlanError, match="device 1, expected a number above 0"):
        partition(even(4), [DeviceCost(1.0), DeviceCost(speed)], [FREE])


def test_a_link_without_bandwidth_is_refused() -> None:
    with pytest.raises(PlanError, match="0 bytes a second"):
        partition(even(4), [DeviceCost(1.0)] * 2, [LinkCost(bandwidth=0.0)])


def test_a_wrong_number_of_links_is_refused() -> None:
    with pytest.raises(ValueError, match="2 links between 2 devices"):
        partition(even(4), [DeviceCost(1.0)] * 2, [FREE] * 2)


@pytest.mark.parametrize("free_order", [False, True])
def test_a_pair_of_kinds_without_a_link_is_refused(free_order: bool) -> None:
    devices = [DeviceCost(1.0, kind=kind) for kind in "ab"]
    links = {frozenset("a"): FREE, frozenset("b"): FREE}
    with pytest.raises(PlanError, match="'a' and 'b'"):
        partition(even(4), devices, links, DeviceUse(free_order))


def test_free_order_uses_slow_links_between_kinds_once() -> None:
    devices = [DeviceCost(1.0, kind=kind) for kind in "abab"]
    fast, slow = LinkCost(), LinkCost(1.0, bandwidth=1.0)
    links = {frozenset("a"): fast, frozenset("b"): fast, frozenset("ab"): slow}
    layers = [LayerCost(1.0, crossing=size) for size in (0.0, 5.0, 0.0, 5.0)]
    # Only a cut at layer 2, where nothing crosses, may use a slow link.
    found = partition(layers, devices, links, DeviceUse(free_order=True))
    assert "".join(devices[index].kind for index in found.devices) in ("aabb", "bbaa")
    assert found.bottleneck == 1.0
    assert partition(layers, devices, links).bottleneck == 6.0


def test_free_order_keeps_the_order_of_equal_devices() -> None:
    layers = [LayerCost(1.0 + i * 7919 % 13, 2.0, 3.0, 1.0 + i % 3) for i in range(200)]
    devices, links = [DeviceCost(2.0, memory=100.0)] * 12, [LinkCost(0.5, bandwidth=4.0)] * 11
    ordered = partition(layers, devices, links)
    assert partition(layers, devices, links, DeviceUse(free_order=True)) == ordered
    assert partition(layers, devices, links, DeviceUse(free_order=True, fewer=True)) == ordered
