"""Whether copies of the whole model would be faster than a pipeline, by numbers made by hand."""

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import nn

from pipepar.model.capture.capture import capture
from pipepar.model.split.crossing import cut_table
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Neighbours
from pipepar.planner import advice as module
from pipepar.planner.advice import advice
from pipepar.planner.choice import Choice, choose
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import model_cost

# 80 bytes of weights a layer; each reads 16 bytes a sample and makes as many.
LAYERS = 4
GRAPH = capture(
    nn.Sequential(*(nn.Linear(4, 4) for _ in range(LAYERS))).eval(), (torch.zeros(2, 4),), {}
)
TABLE = cut_table(GRAPH)
WHOLE = LAYERS * 80 + 32
EQUAL = (1.0,) * LAYERS
UNBALANCED = (1.0, 1.0, 1.0, 5.0)


def planned(
    work: Sequence[float], *devices: DeviceCost, samples: int = 16, link: float = 0.0
) -> Choice:
    """A plan for one sample at a time."""

    links = (LinkCost(link),) * (len(devices) - 1)
    cost = model_cost(GRAPH, TABLE, 1, {"": work})
    request = PlanRequest(samples, depth=1)
    return choose(GRAPH, TABLE, Neighbours(devices, links), lambda size: cost, [1], request)


def alike(count: int, memory: float = math.inf) -> tuple[DeviceCost, ...]:
    return (DeviceCost(1.0, memory),) * count


def test_copies_on_equal_devices_beat_an_unbalanced_pipeline() -> None:
    """Alone a sample takes 8 s, 16 of them 128; four copies take 32, the stages 3 + 16 x 5."""
    devices = alike(4, WHOLE)
    choice = planned(UNBALANCED, *devices)
    assert choice.prediction.seconds == 3 + 16 * 5
    assert advice(choice, devices) == (
        "the model fits on one device: 4 replicas would give 4.0x its speed, 4 stages 1.5x; if "
        "only speed matters, start jobs of one rank each, with a share of the input"
    )


def test_samples_that_do_not_divide_leave_copies_idle() -> None:
    """Of 5 samples one copy takes two: 40 s of work in 16 s."""
    devices = alike(4)
    told = advice(planned(UNBALANCED, *devices, samples=5), devices)
    assert told is not None
    assert "4 replicas would give 2.5x its speed, 4 stages 1.4x" in told  # 40 / (3 + 5 x 5)


def test_filling_is_what_a_balanced_pipeline_loses() -> None:
    """Copies take 4 s for each four; four stages 3 + 16 s where copies take 16."""
    devices = alike(4)
    told = advice(planned(EQUAL, *devices), devices)
    assert told is not None
    assert "4 replicas would give 4.0x its speed, 4 stages 3.4x" in told
    # 3 + 64 s against 64 are less than 5% apart.
    assert advice(planned(EQUAL, *devices, samples=64), devices) is None


def test_a_pipeline_that_is_as_good_needs_no_advice() -> None:
    """A single sample is done no sooner by several copies."""
    assert advice(planned(EQUAL, *alike(4), samples=1), alike(4)) is None


def test_a_model_that_fits_no_device_needs_a_pipeline() -> None:
    devices = alike(4, WHOLE - 1)
    assert advice(planned(UNBALANCED, *devices), devices) is None


def test_a_single_device_has_no_choice() -> None:
    assert advice(planned(UNBALANCED, *alike(1)), alike(1)) is None


def test_a_link_that_holds_up_a_pipeline() -> None:
    """Two stages of 2 s behind a link of 10 s: 2 + 16 x 10 + 2 s, against 64 s alone."""
    devices = alike(2)
    choice = planned(EQUAL, *devices, link=10.0)
    assert choice.prediction.seconds == 164
    told = advice(choice, devices)
    assert told is not None
    assert "2 replicas would give 2.0x its speed, 2 stages 0.4x" in told


def test_one_device_that_can_hold_the_model_alone() -> None:
    """The other one is small; so the pipeline is slower than the large one by itself."""
    devices = (DeviceCost(1.0, WHOLE), DeviceCost(0.1, WHOLE - 1))
    choice = planned(EQUAL, *devices)
    assert choice.prediction.bottleneck == 10
    assert choice.prediction.seconds == 3 + 16 * 10
    assert advice(choice, devices) == (
        "the model fits on one device: one device alone would give 1.0x its speed, 2 stages 0.4x; "
        "if only speed matters, start one rank"
    )


def test_devices_that_the_plan_leaves_out_count_too() -> None:
    choice = planned(EQUAL, *alike(2))
    told = advice(choice, alike(4))
    assert told is not None
    assert "4 replicas would give 4.0x its speed, 2 stages 1.9x" in told  # 64 / (2 + 16 x 2)


def test_speed_is_told_against_the_fastest_device() -> None:
    """4 s and 8 s a sample: of 16, the faster takes 11 in 44 s, the slower 5 in 40."""
    devices = (DeviceCost(1.0), DeviceCost(0.5))
    told = advice(planned(UNBALANCED, *devices, link=30.0), devices)
    assert told is not None
    assert "2 replicas would give 1.5x its speed" in told  # 16 x 8 / 88


@pytest.mark.parametrize("times", [(1.0,), (1.0, 1.0), (1.0, 2.5), (3.0, 1.0, 1.5), (0.7, 0.7, 9)])
@pytest.mark.parametrize("count", range(1, 7))
def test_copies_take_as_long_as_the_best_division(times: tuple[float, ...], count: int) -> None:
    shares = [s for s in product(range(count + 1), repeat=len(times)) if sum(s) == count]
    best = min(max(n * t for n, t in zip(share, times, strict=True)) for share in shares)
    assert module._makespan(times, count) == pytest.approx(best)


def test_very_many_are_divided_like_a_liquid(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = module._makespan((3.0, 1.0, 1.5), 9_000)
    monkeypatch.setattr(module, "_MOST_EXACT", 1_000)
    liquid = module._makespan((3.0, 1.0, 1.5), 9_000)
    assert liquid == pytest.approx(9_000 / 2)  # 1/3 + 1 + 2/3 of them in a second
    assert liquid <= exact <= liquid + 3


def test_a_single_micro_batch_cannot_be_shared() -> None:
    devices = alike(4)
    assert advice(planned(UNBALANCED, *devices, samples=1), devices) is None


def test_one_rank_where_links_cost_more_than_they_bring() -> None:
    """Two of 8 s, one after the other, on the only device that holds the model: 16 s."""
    devices = (DeviceCost(1.0, WHOLE), DeviceCost(1.0, WHOLE - 1))
    told = advice(planned(UNBALANCED, *devices, samples=2, link=20.0), devices)
    assert told is not None
    assert "one device alone would give 1.0x its speed, 2 stages 0." in told
    assert told.endswith("start one rank")
