"""The choice of micro-batch, depth and devices, for costs given by hand.

The model has eight layers. Each has 80 bytes of weights, and reads and writes 16 bytes per sample.
So a stage of n layers between two others takes 80 n + 2 x depth x 16 b + 32 b bytes for
micro-batches of b samples.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import nn

from pipepar.errors import PlanError
from pipepar.model.capture.capture import capture
from pipepar.model.split.crossing import cut_table
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Cluster, Hardware, Neighbours
from pipepar.planner.choice import Choice, choose, faster
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import ModelCost, model_cost

GRAPH = capture(
    nn.Sequential(*(nn.Linear(4, 4) for _ in range(8))).eval(), (torch.zeros(2, 4),), {}
)
TABLE = cut_table(GRAPH)
SIZES = [1, 2, 4, 8, 16, 32]
ONE_MS = 1e-3


def costs(
    *by_layer: float, kind: str = "", **others: Sequence[float]
) -> Callable[[int], ModelCost]:
    """Return layers that take these seconds for any micro-batch, on one or more kinds of device."""
    return lambda size: model_cost(GRAPH, TABLE, size, {kind: by_layer, **others})


def per_micro_batch(fixed: float, each: float) -> Callable[[int], ModelCost]:
    """Return equal layers with a fixed time per micro-batch and a time per sample."""
    return lambda size: costs(*[fixed + each * size] * 8)(size)


def row(
    count: int, *, memory: float = math.inf, link: LinkCost | None = None, kind: str = ""
) -> Neighbours:
    return Neighbours((DeviceCost(1.0, memory, kind),) * count, (link or LinkCost(),) * (count - 1))


def chosen(
    cost: Callable[[int], ModelCost],
    hardware: Hardware | None = None,
    sizes: Sequence[int] = SIZES,
    request: PlanRequest | None = None,
) -> Choice:
    return choose(GRAPH, TABLE, hardware or row(4), cost, sizes, request or PlanRequest())


def layers_of(choice: Choice) -> list[int]:
    return [stage.end - stage.begin for stage in choice.plan.stages]


def taken_by(choice: Choice) -> list[str]:
    return [device.kind for device in choice.prediction.target.hardware.devices]


def best_by_hand(fixed: float, each: float, samples: int, stages: int = 4) -> int:
    """Return the size for which (M + stages - 1) steps of 8 / stages layers take the least time."""

    def seconds(size: int) -> float:
        return (-(-samples // size) + stages - 1) * (8 / stages) * (fixed + each * size)

    return min(SIZES, key=seconds)


def test_fixed_costs_make_the_micro_batch_large() -> None:
    choice = chosen(per_micro_batch(ONE_MS, 1e-9), request=PlanRequest(samples=10_000))
    assert choice.plan.micro_batch == 32
    assert choice.prediction.target.micro_batch == 32
    assert layers_of(choice) == [2, 2, 2, 2]


@pytest.mark.parametrize("samples", [32, 64, 128])
def test_the_time_to_fill_the_pipeline_limits_the_size(samples: int) -> None:
    """Larger micro-batches take less time per sample, but more time to fill and drain."""
    fixed, each = ONE_MS, ONE_MS / 8
    assert fixed + 8 * each < 2 * (fixed + 4 * each)
    choice = chosen(per_micro_batch(fixed, each), request=PlanRequest(samples=samples))
    assert choice.plan.micro_batch == best_by_hand(fixed, each, samples)
    assert 1 < (choice.plan.micro_batch or 0) < 32


def test_fewer_samples_give_smaller_micro_batches() -> None:
    few, many = (
        chosen(per_micro_batch(ONE_MS, ONE_MS / 8), request=PlanRequest(samples=n))
        for n in (16, 1024)
    )
    assert (few.plan.micro_batch or 0) < (many.plan.micro_batch or 0)


def test_the_smallest_of_about_equal_sizes_is_chosen() -> None:
    # 64 micro-batches of any size, none of which makes a sample faster by more than 3%.
    assert chosen(per_micro_batch(0.02 * ONE_MS, ONE_MS)).plan.micro_batch == 1
    assert chosen(per_micro_batch(0.05 * ONE_MS, ONE_MS)).plan.micro_batch == 2


def test_a_single_device_takes_the_largest_size() -> None:
    choice = chosen(per_micro_batch(ONE_MS, ONE_MS / 8), row(1), request=PlanRequest(samples=32))
    assert choice.plan.micro_batch == 32
    assert layers_of(choice) == [8]


def test_memory_limits_the_size() -> None:
    # Stages at the ends have one neighbour: 160 + 2 x 16 b + 32 b; others need 32 b more.
    cost = per_micro_batch(ONE_MS, 1e-9)
    roomy = chosen(cost, row(4, memory=160 + 96 * 16))
    assert (roomy.plan.micro_batch, roomy.plan.depth) == (16, 2)
    assert max(stage.memory for stage in roomy.prediction.stages) == 160 + 96 * 16


def test_the_depth_is_1_if_memory_is_short() -> None:
    cost = per_micro_batch(ONE_MS, 1e-9)
    tight = chosen(cost, row(4, memory=160 + 64 * 16), [16], PlanRequest(samples=48))
    assert (tight.plan.micro_batch, tight.plan.depth) == (16, 1)
    assert tight.prediction.target.depth == 1
    assert tight.prediction.target.samples == 48
    # The stages at the ends need less memory, so they take three layers each.
    tighter = chosen(cost, row(4, memory=80 + 64 * 16), [16])
    assert layers_of(tighter) == [3, 1, 1, 3]
    with pytest.raises(PlanError):
        chosen(cost, row(4, memory=79 + 64 * 16), [16])


def test_a_larger_size_with_depth_1_may_be_faster() -> None:
    cost = per_micro_batch(ONE_MS, 1e-9)
    choice = chosen(cost, row(4, memory=160 + 64 * 16))
    assert (choice.plan.micro_batch, choice.plan.depth) == (16, 1)


def test_a_given_depth_is_used_or_refused() -> None:
    cost, room = per_micro_batch(ONE_MS, 1e-9), 160 + 64 * 16
    for depth in (1, 2, 3):
        assert chosen(cost, request=PlanRequest(depth=depth)).plan.depth == depth
    # An inner stage needs 80 + 2 x 2 x 16 b + 32 b bytes, which fits up to b = 11.
    choice = chosen(cost, row(4, memory=room), request=PlanRequest(depth=2))
    assert (choice.plan.micro_batch, choice.plan.depth) == (8, 2)
    with pytest.raises(PlanError, match=r"the smallest of 4 devices has 1\.156 KiB"):
        chosen(cost, row(4, memory=room), [16], PlanRequest(depth=2))


def test_a_given_micro_batch_is_used_or_refused() -> None:
    cost = per_micro_batch(ONE_MS, 1e-9)
    request = PlanRequest(samples=10_000, micro_batch=3)
    assert request.sizes(None) == [3]
    assert chosen(cost, sizes=request.sizes(None), request=request).plan.micro_batch == 3
    # A stage of one layer needs 80 + 2 x 16 b + 32 b bytes.
    with pytest.raises(
        PlanError, match=r"needs 272 B for layers \[\d, \d\), expected at most 200 B"
    ):
        chosen(cost, row(4, memory=200), request.sizes(None), request)


def test_if_no_size_fits_the_error_is_for_the_smallest() -> None:
    with pytest.raises(PlanError, match=r"needs 144 B .* at most 100 B"):
        chosen(per_micro_batch(ONE_MS, 0), row(4, memory=100))


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PlanError, match="at most 8 ranks"):
        chosen(costs(*[1.0] * 8), row(9))


@pytest.mark.parametrize(
    ("options", "fixed", "sizes"),
    [
        (PlanRequest(), None, [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (PlanRequest(samples=0), None, [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (PlanRequest(samples=1), None, [1]),
        (PlanRequest(samples=7), None, [1, 2, 4]),
        (PlanRequest(samples=8), None, [1, 2, 4, 8]),
        (PlanRequest(samples=10**6), None, [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (PlanRequest(samples=1), 12, [12]),
        (PlanRequest(micro_batch=5), None, [5]),
        (PlanRequest(micro_batch=1000), None, [1000]),
        (PlanRequest(micro_batch=1000, samples=400), None, [400]),
        (PlanRequest(micro_batch=12), 12, [12]),
    ],
)
def test_sizes_to_choose_from(options: PlanRequest, fixed: int | None, sizes: list[int]) -> None:
    assert options.sizes(fixed) == sizes


def test_zero_samples_can_be_planned() -> None:
    choice = chosen(per_micro_batch(ONE_MS, ONE_MS), request=PlanRequest(samples=0))
    assert choice.prediction.target.microbatches == 1


def test_a_choice_has_its_cost_and_its_prediction() -> None:
    choice = chosen(
        per_micro_batch(ONE_MS, 0), request=PlanRequest(samples=320, micro_batch=4), sizes=[4]
    )
    assert [layer.work for layer in choice.cost.layers] == [{"": ONE_MS}] * 8
    assert choice.prediction.seconds == pytest.approx((63 + 4 + 16) * 2 * ONE_MS)
    assert choice.prediction.samples_per_second == pytest.approx(320 / (83 * 2 * ONE_MS))


def cluster(*kinds: str) -> Cluster:
    devices = tuple(DeviceCost(1.0, 200.0 if kind == "small" else 1e9, kind) for kind in kinds)
    pairs = {frozenset((one.kind, other.kind)) for one in devices for other in devices}
    return Cluster(devices, {pair: LinkCost() for pair in pairs})


def test_free_order_gives_each_device_the_layers_it_is_fast_at() -> None:
    """The odd device is slow for all layers except the last two."""
    odd = [4.0] * 6 + [0.5] * 2
    cost = costs(*[1.0] * 8, kind="even", odd=odd)
    hardware = cluster("odd", "even", "even")
    fixed = chosen(cost, hardware, [1])
    assert taken_by(fixed) == ["odd", "even", "even"]
    assert fixed.prediction.bottleneck == 4.0
    free = chosen(cost, hardware, [1], PlanRequest(free_order=True))
    assert taken_by(free) == ["even", "even", "odd"]
    assert (fixed.plan.ranks, free.plan.ranks) == (None, (1, 2, 0))
    assert layers_of(free) == [3, 3, 2]
    assert [stage.device.kind for stage in free.prediction.stages] == taken_by(free)
    assert [stage.compute for stage in free.prediction.stages] == [3.0, 3.0, 1.0]


def test_free_order_uses_the_links_of_the_kinds() -> None:
    """The link between the first two devices is slow; the third device has fast links to both."""
    near, far = LinkCost(0.5), LinkCost(5.0)
    devices = tuple(DeviceCost(1.0, kind=kind) for kind in ("a", "b", "c"))
    links = {frozenset("ab"): far, frozenset("ac"): near, frozenset("bc"): near}
    cost = costs(*[1.0] * 8, kind="a", b=[1.0] * 8, c=[1.0] * 8)
    assert chosen(cost, Cluster(devices, links), [1]).prediction.bottleneck == 5.0
    free = chosen(cost, Cluster(devices, links), [1], PlanRequest(free_order=True))
    assert taken_by(free)[1] == "c"
    assert [stage.transfer for stage in free.prediction.stages] == [0.0, 0.5, 0.5]
    assert free.prediction.bottleneck == 3.0


@pytest.mark.parametrize("free_order", [False, True])
def test_free_order_with_a_single_device(free_order: bool) -> None:
    choice = chosen(
        costs(*[1.0] * 8, kind="a"), cluster("a"), [1], PlanRequest(free_order=free_order)
    )
    assert taken_by(choice) == ["a"]


@pytest.mark.parametrize("free_order", [False, True])
def test_a_useless_device_is_left_out(free_order: bool) -> None:
    cost = costs(*[1.0] * 8, kind="fast", slow=[100.0] * 8)
    hardware = cluster("fast", "fast", "slow")
    assert len(chosen(cost, hardware, [1]).plan.stages) == 3
    choice = chosen(cost, hardware, [1], PlanRequest(fewer=True, free_order=free_order))
    assert taken_by(choice) == ["fast", "fast"]
    assert layers_of(choice) == [4, 4]
    assert choice.prediction.bottleneck == 4.0


def test_only_neighbours_are_used_unless_the_order_is_free() -> None:
    cost = costs(*[1.0] * 8, kind="fast", slow=[100.0] * 8)
    hardware = cluster("fast", "slow", "fast")
    assert taken_by(chosen(cost, hardware, [1], PlanRequest(fewer=True))) == ["fast"]
    free = chosen(cost, hardware, [1], PlanRequest(fewer=True, free_order=True))
    assert taken_by(free) == ["fast", "fast"]


def test_the_links_of_the_used_devices_are_correct() -> None:
    devices = tuple(DeviceCost(1.0, kind=kind) for kind in ("slow", "fast", "fast"))
    hardware = Neighbours(devices, (LinkCost(7.0), LinkCost(2.0)))
    cost = costs(*[1.0] * 8, kind="fast", slow=[100.0] * 8)
    choice = chosen(cost, hardware, [1], PlanRequest(fewer=True))
    assert taken_by(choice) == ["fast", "fast"]
    assert choice.prediction.stages[1].transfer == 2.0


def test_a_shared_weight_needs_memory_once() -> None:
    shared = nn.Linear(4, 4)
    graph = capture(nn.Sequential(*[shared] * 8).eval(), (torch.zeros(2, 4),), {})
    table = cut_table(graph)
    room = 80 + 2 * 2 * 32 + 64  # the weight, the channels, the workspace of a layer
    others = (partial(model_cost, graph, table), [2], PlanRequest())
    made = choose(graph, table, row(2, memory=room), *others)
    assert [stage.memory for stage in made.prediction.stages] <= [room, room]
    with pytest.raises(PlanError, match="memory of the largest device"):
        choose(graph, table, row(2, memory=79), *others)


def test_another_order_is_chosen_only_if_clearly_faster() -> None:
    slow, fast = (chosen(costs(*[seconds] * 8), sizes=[1]) for seconds in (1.0, 0.9))
    alike = chosen(costs(*[0.97] * 8), sizes=[1])

    def none() -> Choice:
        raise PlanError("too many sets of devices")

    assert faster(slow, lambda: fast) is fast
    assert faster(slow, lambda: alike) is slow
    assert faster(slow, none) is slow
