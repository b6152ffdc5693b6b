"""Partitions of layers whose work depends on the kind of device."""

import math
from collections.abc import Mapping

import pytest

from pipepar.errors import PlanError
from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import DeviceUse, Partition, partition

GPU, CPU = DeviceCost(1.0, kind="gpu"), DeviceCost(1.0, kind="cpu")
FREE = LinkCost()

Work = float | Mapping[str, float]


def row(*works: Work) -> list[LayerCost]:
    """Return layers with 0 crossing bytes."""
    return [LayerCost(work, crossing=0.0) for work in works]


def by_kind(gpu: float, cpu: float) -> Mapping[str, float]:
    """Return the work by kind, with an invalid value for a kind that no device has."""
    return {"gpu": gpu, "cpu": cpu, "tpu": math.nan}


def test_each_kind_takes_the_layers_that_it_computes_faster() -> None:
    layers = row(*[by_kind(gpu=4.0, cpu=1.0)] * 3, *[by_kind(gpu=1.0, cpu=9.0)] * 3)
    found = partition(layers, [GPU, CPU], [FREE], DeviceUse(free_order=True))
    assert found == Partition(cuts=(3,), devices=(1, 0), bottleneck=3.0)
    # In the given order the GPU takes the layers that the CPU would compute faster.
    assert partition(layers, [GPU, CPU], [FREE]).bottleneck == 14.0


def test_the_speed_of_a_device_scales_the_work_of_its_kind() -> None:
    layers = row(*[by_kind(gpu=4.0, cpu=1.0)] * 3, *[by_kind(gpu=1.0, cpu=9.0)] * 3)
    half = DeviceCost(0.5, kind="cpu")
    found = partition(layers, [half, GPU], [FREE])
    assert found == Partition(cuts=(3,), devices=(0, 1), bottleneck=6.0)


def test_equal_work_by_kind_equals_one_number() -> None:
    works = [1.0 + i * 7919 % 13 for i in range(100)]
    devices = [GPU, CPU, GPU, CPU, GPU]
    kinds = partition(row(*(by_kind(work, work) for work in works)), devices, [FREE] * 4)
    assert kinds == partition(row(*works), devices, [FREE] * 4)


def test_work_for_one_kind_is_enough_for_a_stage() -> None:
    layers = row(by_kind(gpu=1.0, cpu=0.0), by_kind(gpu=0.0, cpu=0.0), by_kind(gpu=0.0, cpu=1.0))
    found = partition(layers, [CPU, GPU], [FREE])
    assert found.bottleneck == 0.0
    with pytest.raises(PlanError, match="start at most 2 ranks"):
        partition(layers, [CPU, GPU, CPU], [FREE] * 2)
    with pytest.raises(PlanError, match="start at most 1 ranks"):
        partition(layers, [CPU, CPU], [FREE])


def test_a_kind_without_work_is_named() -> None:
    layers = row(by_kind(1.0, 1.0), {"gpu": 1.0})
    message = r"no work of layer 1 for devices of kind 'cpu', expected .*\['cpu', 'gpu'\]"
    with pytest.raises(PlanError, match=message):
        partition(layers, [GPU, CPU], [FREE])
    assert partition(layers, [GPU, GPU], [FREE]).cuts == (1,)


def test_two_forms_of_work_are_refused() -> None:
    with pytest.raises(PlanError, match="expected one form; give the work of every layer by kind"):
        partition(row(by_kind(1.0, 1.0), 1.0), [GPU, CPU], [FREE])


@pytest.mark.parametrize("work", [-1.0, math.nan, math.inf])
def test_invalid_work_is_refused(work: float) -> None:
    for layers in (row(1.0, work), row(by_kind(1.0, 1.0), by_kind(1.0, work))):
        with pytest.raises(PlanError, match="in layer 1, expected 0 or more"):
            partition(layers, [GPU, CPU], [FREE])
