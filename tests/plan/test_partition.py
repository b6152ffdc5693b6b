"""Partitions for equal devices, compared with all possible partitions."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipepar.errors import PlanError
from pipepar.plan import partition as planned
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost

SLACK = 0.05

instances = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 9), min_size=n, max_size=n),
        st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=n, max_size=n),
        st.integers(1, 4),
    )
)


def partition(
    costs: Sequence[float], crossing: Sequence[float | None], stages: int, slack: float = SLACK
) -> tuple[int, ...]:
    """Return the cuts for equal devices with unlimited memory and bandwidth."""
    layers = [LayerCost(work, crossing=size) for work, size in zip(costs, crossing, strict=True)]
    links = [LinkCost()] * (stages - 1)
    found = planned.partition(layers, [DeviceCost(1.0)] * stages, links, slack=slack)
    assert found.devices == tuple(range(stages))
    return found.cuts


def every_partition(costs: list[int], crossing: list[int | None], stages: int) -> Any:
    """Yield (bottleneck, bytes, cuts) of each partition whose stages all have work."""
    legal = [p for p in range(1, len(costs)) if crossing[p] is not None]
    for cuts in itertools.combinations(legal, stages - 1):
        spans = [sum(costs[a:b]) for a, b in itertools.pairwise([0, *cuts, len(costs)])]
        if min(spans) > 0 or stages == 1:
            yield max(spans), sum(crossing[p] or 0 for p in cuts), cuts


@given(instances)
@settings(max_examples=3 * settings().max_examples)
def test_equals_brute_force(instance: tuple[list[int], list[int | None], int]) -> None:
    costs, crossing, stages = instance
    found = list(every_partition(costs, crossing, stages))
    if not found:
        with pytest.raises(PlanError):
            partition(costs, crossing, stages)
        return
    limit = min(bottleneck for bottleneck, _, _ in found) * (1 + SLACK)
    allowed = [(b, worst) for worst, b, _ in found if worst <= limit]
    cuts = partition(costs, crossing, stages, SLACK)
    mine = next((b, worst) for worst, b, c in found if c == cuts)
    assert mine == min(allowed)


@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=9), st.integers(2, 4))
def test_rounded_sums_reach_the_smallest_bottleneck(tenths: list[int], stages: int) -> None:
    costs = [number * 0.1 for number in tenths]
    found = list(every_partition(tenths, [1] * len(tenths), stages))
    if found:
        cuts = partition(costs, [1] * len(costs), stages, slack=0)
        spans = [sum(tenths[a:b]) for a, b in itertools.pairwise([0, *cuts, len(costs)])]
        assert max(spans) == min(bottleneck for bottleneck, _, _ in found)


@pytest.mark.parametrize(
    ("slack", "expected"),
    [
        (0.0, (2,)),  # 4 | 4, but 100 bytes cross
        (0.5, (3,)),  # 6 | 2, and 1 byte crosses
    ],
)
def test_bytes_decide_within_the_slack(slack: float, expected: Any) -> None:
    assert partition([2, 2, 2, 2], [None, 50, 100, 1], 2, slack) == expected


def test_equal_bytes_leave_the_better_balance() -> None:
    assert partition([1.0] * 60, [1.0] * 60, 3) == (20, 40)


def test_one_stage_needs_no_cut() -> None:
    assert partition([1, 1], [None, None], 1) == ()


def test_a_stage_without_work_is_refused() -> None:
    # Positions 2 and 3 are legal, but the layer between them has no work.
    with pytest.raises(PlanError, match=r"found 3 stages.*at most 2.*start at most 2 ranks"):
        partition([1, 1, 0, 1], [None, None, 5, 5], 3)


def test_the_error_for_too_many_stages_names_the_maximum() -> None:
    with pytest.raises(PlanError, match="start at most 2 ranks"):
        partition([1, 1, 1], [None, 4, None], 3)


def test_cuts_without_work_between_them_do_not_count() -> None:
    # Legal at 1, 2, 3 and 4; only 1 and 3 differ in the work before them and have some after.
    message = r"legal cuts \(4\) 2 have work before, after and between them; .* 3 ranks"
    with pytest.raises(PlanError, match=message):
        partition([1, 0, 1, 1, 0], [None, 1, 1, 1, 1], 4)


def test_zero_stages_are_refused() -> None:
    with pytest.raises(PlanError, match="found 0 stages"):
        partition([1], [None], 0)


def test_a_large_model_is_balanced() -> None:
    costs = [1 + (i * 7919) % 13 for i in range(800)]
    cuts = partition(costs, [1 + i % 3 for i in range(800)], 8)
    spans = [sum(costs[a:b]) for a, b in itertools.pairwise([0, *cuts, 800])]
    assert len(cuts) == 7
    assert max(spans) <= math.ceil(sum(costs) / 8 + max(costs)) * (1 + SLACK)


def test_ties_are_broken_as_before() -> None:
    # Equal bytes and equal balance: existing plans must not change.
    costs = [(i * 37) % 5 + 1.0 for i in range(60)]
    crossing = [float((i * 11) % 4 + 1) for i in range(60)]
    assert partition(costs, crossing, 5) == (12, 24, 36, 48)
    assert partition([1.0] * 12, [1.0] * 12, 5, slack=0.5) == (2, 4, 6, 9)
