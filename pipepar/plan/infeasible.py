"""Errors for a model that cannot be divided among devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import numpy as np

from pipepar.errors import PlanError
from pipepar.plan.costs import DeviceCost, LayerCost
from pipepar.plan.prefix_sums import PrefixSums


def check_work(layers: Sequence[LayerCost], kinds: Set[str]) -> None:
    """Refuse layers whose work is not a number of 0 or more for every kind of device.

    Args:
        layers: the model.
        kinds: the kinds of all devices.

    Raises:
        PlanError: the work is negative, not finite or missing for a kind, or it is one number for
            some layers and by kind of device for others.
    """
    if len({isinstance(layer.work, Mapping) for layer in layers}) > 1:
        raise PlanError(
            "found layers with one number as their work, and layers with work by kind of device, "
            "expected one form; give the work of every layer by kind"
        )
    for index, layer in enumerate(layers):
        missing = kinds - layer.work.keys() if isinstance(layer.work, Mapping) else ()
        if missing:
            raise PlanError(
                f"found no work of layer {index} for devices of kind {min(missing)!r}, expected "
                f"work for each of {sorted(kinds)}; give it, or leave those devices out"
            )
        for work in map(layer.work_on, kinds):
            if not 0 <= work < math.inf:
                raise PlanError(
                    f"found work of {work:g} in layer {index}, expected 0 or more; give its "
                    f"floating-point operations or seconds"
                )


def check_cuts(sums: PrefixSums, legal: int, stages: int) -> None:
    """Refuse more stages than can all have work.

    Args:
        sums: the model, with its useful cuts; cuts without work between them count as one.
        legal: number of legal cuts, useful or not, for the message.
        stages: number of stages wanted.

    Raises:
        PlanError: there are too many stages.
    """
    most = max(1, len(np.unique(sums.done)) - 1)
    if stages > most:
        raise PlanError(
            f"found {stages} stages to plan for, expected at most {most}: each stage needs work, "
            f"and of the model's legal cuts ({legal}) {most - 1} have work before, after and "
            f"between them; start at most {most} ranks"
        )


def no_room(sums: PrefixSums, devices: Sequence[DeviceCost]) -> PlanError:
    """Return the error for a model without a partition that fits in memory.

    It names the first of these causes: the tightest stage fits no device, the weights exceed the
    memory of all devices, or there is no way to cut the model.

    Args:
        sums: the model.
        devices: all devices.
    """
    begin, end, need = _tightest(sums)
    layers = f"[{sums.position[begin]}, {sums.position[end]})"
    largest = max(device.memory for device in devices)
    if need > largest:
        return PlanError(
            f"found a stage that needs {_size(need)} for layers {layers}, expected at most "
            f"{_size(largest)}, the memory of the largest device; use larger devices, smaller "
            f"micro-batches, another dtype or a smaller depth"
        )
    weights, room = float(sums.weights[-1]), sum(device.memory for device in devices)
    if weights > room:
        return PlanError(
            f"found {_size(weights)} of weights, expected at most {_size(room)}, the memory of "
            f"all {len(devices)} devices; use more or larger devices, or another dtype"
        )
    smallest = min(device.memory for device in devices)
    return PlanError(
        f"found no way to cut {_size(weights)} of weights so that each stage fits its device; the "
        f"tightest stage needs {_size(need)} for layers {layers}, the smallest of "
        f"{len(devices)} devices has {_size(smallest)}; use more or larger devices, another order "
        f"or number of devices, or a smaller depth"
    )


def _tightest(sums: PrefixSums) -> tuple[int, int, float]:
    """Return the places of the begin and the end of the tightest stage, and its bytes.

    For each layer, one of the possible stages that contain it needs the least memory. The tightest
    stage is the one of these that needs the most.
    """
    count = len(sums.done) - 1
    least = np.full(count, np.inf)  # bytes of the smallest stage with the layers after each place
    begin, end = np.zeros(count, dtype=np.intp), np.zeros(count, dtype=np.intp)
    for place in range(1, count + 1):
        memory = sums.memory(0, place)
        smallest = np.minimum.accumulate(memory)
        better = smallest < least[:place]
        starts = np.maximum.accumulate(np.where(memory <= smallest, np.arange(place), 0))
        least[:place] = np.where(better, smallest, least[:place])
        begin[:place] = np.where(better, starts, begin[:place])
        end[:place] = np.where(better, place, end[:place])
    worst = int(least.argmax())
    return int(begin[worst]), int(end[worst]), float(least[worst])


def _size(value: float) -> str:
    unit = min(int(math.log2(max(value, 1)) // 10), 3)
    return f"{value / 1024**unit:.4g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"
