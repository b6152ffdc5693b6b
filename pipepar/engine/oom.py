"""The error message for a device that is out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipepar.errors import PlanError
from pipepar.format import readable_bytes
from pipepar.host.run_context import RunContext
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import cut_table
from pipepar.plan.placement import Placement
from pipepar.plan.plan import StagePlan
from pipepar.planner.plan_job import AgreedPlan
from pipepar.planner.prediction import model_cost, stage_memory


@contextmanager
def oom_explained(
    run: RunContext, graph: Graph, agreed: AgreedPlan, placement: Placement
) -> Iterator[None]:
    """Convert torch's OutOfMemoryError in the ``with`` body into an error with a remedy.

    Args:
        run: this rank and its device.
        graph: the captured model.
        agreed: the plan, the micro-batch and the depth.
        placement: the rank of each stage.

    Raises:
        PlanError: the stage of this rank does not fit.
        torch.OutOfMemoryError: raised unchanged on a rank without a stage.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        index = placement.stage_of(run.world.rank)
        if index is None:
            raise
        stage = agreed.plan.stages[index]
        raise PlanError(_message(run, graph, agreed, stage, error)) from error


def _message(
    run: RunContext, graph: Graph, agreed: AgreedPlan, stage: StagePlan, error: Exception
) -> str:
    world, context = run.world, run.device_context
    cost = model_cost(graph, cut_table(graph), agreed.micro_batch)
    needed = stage_memory(stage, cost.layers, agreed.depth)
    others = context.devices.sharers - 1
    shared = f", which {others} other rank{'s' * (others > 1)} of the job use too" * (others > 0)
    return (
        f"stage {stage.index} does not fit on {context.devices.name} ({context.device}) of rank "
        f"{world.rank} on {world.host}{shared}. It has operations {stage.begin}-{stage.end - 1} "
        f"with {readable_bytes(stage.weight_bytes)} of weights, and with micro-batches of "
        f"{agreed.micro_batch} and depth {agreed.depth} it takes at least "
        f"{readable_bytes(int(needed))}; {readable_bytes(int(context.room))}"
        f"{' per rank' * (others > 0)} are free now. "
        f"{_remedy(graph, agreed)}. CUDA error: {str(error).splitlines()[0]}"
    )


def _remedy(graph: Graph, agreed: AgreedPlan) -> str:
    """Return the changes that would need less memory, as a sentence."""
    ways = ["start more ranks"]
    if agreed.micro_batch > 1:
        ways.append(f"take micro-batches of {agreed.micro_batch // 2}")
    if agreed.depth > 1:
        ways.append("depth 1")
    if any(spec.dtype == torch.float32 for spec in graph.weights.values()):
        ways.append("dtype bfloat16")
    *most, last = ways
    return ", ".join(most).capitalize() + f" or {last}" if most else last.capitalize()
