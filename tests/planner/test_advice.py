"""The advice to use replicas instead of a pipeline, for costs given by hand."""

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

# Each layer has 80 bytes of weights, and reads and writes 16 bytes per sample.
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
    """Return a plan for micro-batches of one sample."""
    links = (LinkCost(link),) * (len(devices) - 1)
    cost = model_cost(GRAPH, TABLE, 1, {"": work})
    request = PlanRequest(samples, depth=1)
    return choose(GRAPH, TABLE, Neighbours(devices, links), lambda size: cost, [1], request)


def alike(count: int, memory: float = math.inf) -> tuple[DeviceCost, ...]:
    return (DeviceCost(1.0, memory),) * count


def test_replicas_on_equal_devices_beat_an_unbalanced_pipeline() -> None:
    """One device takes 8 x 16 = 128 s, four replicas take 32 s, the stages 3 + 16 x 5 s."""
    devices = alike(4, WHOLE)
    choice = planned(UNBALANCED, *devices)
    assert choice.prediction.seconds == 3 + 16 * 5
    assert advice(choice, devices) == (
        "the model fits on one device: 4 replicas would give 4.0x its speed, 4 stages 1.5x; if "
        "only speed matters, start jobs of one rank each, with a share of the input"
    )


def test_samples_that_do_not_divide_leave_replicas_idle() -> None:
    """Of 5 samples one replica takes two: 40 s of work in 16 s."""
    devices = alike(4)
    text = advice(planned(UNBALANCED, *devices, samples=5), devices)
    assert text is not None
    assert "4 replicas would give 2.5x its speed, 4 stages 1.4x" in text  # 40 / (3 + 5 x 5)


def test_a_balanced_pipeline_loses_only_the_time_to_fill() -> None:
    """For 16 samples four replicas take 16 s, four stages 3 + 16 s."""
    devices = alike(4)
    text = advice(planned(EQUAL, *devices), devices)
    assert text is not None
    assert "4 replicas would give 4.0x its speed, 4 stages 3.4x" in text
    # 3 + 64 s and 64 s differ by less than 5%.
    assert advice(planned(EQUAL, *devices, samples=64), devices) is None


def test_no_advice_if_the_pipeline_is_as_fast() -> None:
    """Several replicas do not compute a single sample faster."""
    assert advice(planned(EQUAL, *alike(4), samples=1), alike(4)) is None


def test_no_advice_if_the_model_fits_no_device() -> None:
    devices = alike(4, WHOLE - 1)
    assert advice(planned(UNBALANCED, *devices), devices) is None


def test_no_advice_for_a_single_device() -> None:
    assert advice(planned(UNBALANCED, *alike(1)), alike(1)) is None


def test_advice_if_a_slow_link_limits_the_pipeline() -> None:
    """Two stages of 2 s with a link of 10 s take 2 + 16 x 10 + 2 s; one device takes 64 s."""
    devices = alike(2)
    choice = planned(EQUAL, *devices, link=10.0)
    assert choice.prediction.seconds == 164
    text = advice(choice, devices)
    assert text is not None
    assert "2 replicas would give 2.0x its speed, 2 stages 0.4x" in text


def test_advice_if_only_one_device_can_hold_the_model() -> None:
    """The other device is small and slow, so the pipeline is slower than the large device."""
    devices = (DeviceCost(1.0, WHOLE), DeviceCost(0.1, WHOLE - 1))
    choice = planned(EQUAL, *devices)
    assert choice.prediction.bottleneck == 10
    assert choice.prediction.seconds == 3 + 16 * 10
    assert advice(choice, devices) == (
        "the model fits on one device: one device alone would give 1.0x its speed, 2 stages 0.4x; "
        "if only speed matters, start one rank"
    )


def test_replicas_may_use_devices_that_the_plan_leaves_out() -> None:
    choice = planned(EQUAL, *alike(2))
    text = advice(choice, alike(4))
    assert text is not None
    assert "4 replicas would give 4.0x its speed, 2 stages 1.9x" in text  # 64 / (2 + 16 x 2)


def test_speed_is_relative_to_the_fastest_device() -> None:
    """At 8 s and 16 s per sample, the faster takes 11 of 16 samples in 88 s, the slower 5 in 80."""
    devices = (DeviceCost(1.0), DeviceCost(0.5))
    text = advice(planned(UNBALANCED, *devices, link=30.0), devices)
    assert text is not None
    assert "2 replicas would give 1.5x its speed" in text  # 16 x 8 / 88


@pytest.mark.parametrize("times", [(1.0,), (1.0, 1.0), (1.0, 2.5), (3.0, 1.0, 1.5), (0.7, 0.7, 9)])
@pytest.mark.parametrize("count", range(1, 7))
def test_replicas_take_as_long_as_the_best_division(times: tuple[float, ...], count: int) -> None:
    shares = [s for s in product(range(count + 1), repeat=len(times)) if sum(s) == count]
    best = min(max(n * t for n, t in zip(share, times, strict=True)) for share in shares)
    assert module._makespan(times, count) == pytest.approx(best)


def test_the_time_of_very_many_micro_batches_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = module._makespan((3.0, 1.0, 1.5), 9_000)
    monkeypatch.setattr(module, "_MOST_EXACT", 1_000)
    estimate = module._makespan((3.0, 1.0, 1.5), 9_000)
    assert estimate == pytest.approx(9_000 / 2)  # 1/3 + 1 + 2/3 micro-batches per second
    assert estimate <= exact <= estimate + 3


def test_no_advice_for_a_single_micro_batch() -> None:
    devices = alike(4)
    assert advice(planned(UNBALANCED, *devices, samples=1), devices) is None


def test_advice_to_use_one_rank_if_links_are_slow() -> None:
    """The only device that holds the model computes two samples of 8 s in 16 s."""
    devices = (DeviceCost(1.0, WHOLE), DeviceCost(1.0, WHOLE - 1))
    text = advice(planned(UNBALANCED, *devices, samples=2, link=20.0), devices)
    assert text is not None
    assert "one device alone would give 1.0x its speed, 2 stages 0." in text
    assert text.endswith("start one rank")
