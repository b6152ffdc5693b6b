"""From a model to a plan: costs from the graph, cuts from the dynamic programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipepar.model.capture import capture
from pipepar.model.crossing import CutTable, cut_table
from pipepar.model.cut import parts
from pipepar.model.graph import Graph
from pipepar.plan.partition import partition
from pipepar.plan.plan import Plan, StagePlan


@dataclass(frozen=True, slots=True)
class Planning:
    """What is known of a model before it runs."""

    table: CutTable
    """Where it can be cut."""
    plan: Plan | None
    """How it is cut; None if nobody said into how many stages."""


def plan_model(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], stages: int | None
) -> Planning:
    """Capture a model, and plan its stages. *Local.*

    Args:
        module: the model in eval mode, parameters on meta.
        args: example of its positional inputs; shapes and dtypes count, values do not.
        kwargs: the same for its keyword inputs.
        stages: how many, one for each rank; None for no plan.

    Returns:
        Its legal cuts, and the plan.

    Raises:
        CaptureError: the model cannot be traced.
        PlanError: it cannot be cut into that many stages.
    """
    graph = capture(module, args, kwargs)
    table = cut_table(graph)
    return Planning(table, None if stages is None else _plan(graph, table, stages))


def make_plan(graph: Graph, stages: int) -> Plan:
    """Divide a model into stages of about equal work that send little. *Local.*

    Args:
        graph: the captured model; costs are counted at its example's sizes.
        stages: how many stages, one for each rank.

    Returns:
        The plan; the same in every process that captured the same model.

    Raises:
        PlanError: the model cannot be cut into that many stages.
    """
    return _plan(graph, cut_table(graph), stages)


def _plan(graph: Graph, table: CutTable, stages: int) -> Plan:
    cuts = partition(table.costs, table.crossing, stages)
    return Plan(
        model=graph.digest,
        inputs=graph.inputs,
        outputs=graph.outputs,
        stages=tuple(
            StagePlan(
                index=index,
                begin=part.begin,
                end=part.end,
                inputs=part.inputs,
                outputs=part.outputs,
                weights=part.weights,
                weight_bytes=part.weight_bytes,
                flops=sum(table.flops[part.begin : part.end]),
            )
            for index, part in enumerate(parts(graph, cuts))
        ),
    )
