"""Whether a pipeline is the right tool: what copies of the whole model would reach instead."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from pipepar.plan.costs import DeviceCost
from pipepar.planner.choice import Choice
from pipepar.planner.prediction import seconds_on

# Copies must be worth the memory and the further jobs.
_WORTH: Final = 1.05
_MOST: Final = 10_000


def advice(choice: Choice, devices: Sequence[DeviceCost]) -> str | None:
    """What would be faster than a pipeline.

    Copies take micro-batches one after another, each the next as soon as it is free. They compute
    as fast as was measured or counted for stages; where ranks share a memory bus, that is with all
    ranks busy.

    Args:
        choice: the plan.
        devices: all there are, whether the plan uses them or not.

    Returns:
        A sentence with the figures; None if the model fits no device, there is but one, or the
        pipeline is about as fast.
    """
    weights = sum(stage.weight_bytes for stage in choice.plan.stages)
    memory = weights + max(layer.workspace for layer in choice.cost.layers)
    able = [device for device in devices if memory <= device.memory]
    count = choice.prediction.target.microbatches
    if not able or len(devices) < 2 or count < 2 or not choice.prediction.seconds:
        return None
    times = sorted(seconds_on(device, choice.cost.layers) for device in able)[:count]
    alone = count * min(times)
    copies, stages = alone / _makespan(times, count), alone / choice.prediction.seconds
    if copies < _WORTH * stages:
        return None
    single = copies < _WORTH
    what = "one device alone" if single else f"{len(times)} replicas"
    how = "one rank" if single else "jobs of one rank each, with a share of the input"
    return (
        f"the model fits on one device: {what} would give {copies:.1f}x its speed, "
        f"{len(choice.plan.stages)} stages {stages:.1f}x; where speed is all that counts, start "
        f"{how}"
    )


def _makespan(times: Sequence[float], count: int) -> float:
    """Seconds until so many equal tasks are done by workers that take these times for each."""
    if count > _MOST:
        return count / sum(1 / seconds for seconds in times)
    free = [(seconds, seconds) for seconds in times]
    heapq.heapify(free)
    done = 0.0
    for _ in range(count):
        done, seconds = free[0]
        heapq.heapreplace(free, (done + seconds, seconds))
    return done
