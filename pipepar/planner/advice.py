"""Advice to run the whole model on single devices instead of a pipeline, if that is faster."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from pipepar.plan.costs import DeviceCost
from pipepar.planner.choice import Choice
from pipepar.planner.prediction import seconds_on

# Replicas need more memory and more jobs, so they must be faster by this factor.
_GAIN: Final = 1.05
# Above this number of tasks, the time is estimated as if a task could be divided among workers.
_MOST_EXACT: Final = 10_000


def advice(choice: Choice, devices: Sequence[DeviceCost]) -> str | None:
    """Return the advice to use one device or replicas of the model, if that is clearly faster.

    Each replica takes the next micro-batch as soon as it is free. Its speed is that of its device
    for the plan. If speeds were measured, all ranks were busy then.

    Args:
        choice: the plan.
        devices: all devices, whether the plan uses them or not.

    Returns:
        A sentence with the speeds; None if the model fits no device, there is only one device or
        one micro-batch, or the gain is less than 5 %.
    """
    weights = sum(stage.weight_bytes for stage in choice.plan.stages)
    memory = weights + max(layer.workspace for layer in choice.cost.layers)
    large_enough = [device for device in devices if memory <= device.memory]
    count = choice.prediction.target.microbatches
    if not large_enough or len(devices) < 2 or count < 2 or not choice.prediction.seconds:
        return None
    times = sorted(seconds_on(device, choice.cost.layers) for device in large_enough)[:count]
    alone = count * min(times)
    replicas, stages = alone / _makespan(times, count), alone / choice.prediction.seconds
    if replicas < _GAIN * stages:
        return None
    single = replicas < _GAIN
    what = "one device alone" if single else f"{len(times)} replicas"
    how = "one rank" if single else "jobs of one rank each, with a share of the input"
    return (
        f"the model fits on one device: {what} would give {replicas:.1f}x its speed, "
        f"{len(choice.plan.stages)} stages {stages:.1f}x; if only speed matters, start {how}"
    )


def _makespan(times: Sequence[float], count: int) -> float:
    """Return the seconds to complete equal tasks; a worker takes the next one when it is free.

    Args:
        times: for each worker, seconds for one task.
        count: number of tasks.
    """
    if count > _MOST_EXACT:
        return count / sum(1 / seconds for seconds in times)
    free = [(seconds, seconds) for seconds in times]
    heapq.heapify(free)
    done = 0.0
    for _ in range(count):
        done, seconds = free[0]
        heapq.heapreplace(free, (done + seconds, seconds))
    return done
