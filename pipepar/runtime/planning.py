"""From a captured model to a plan: costs from the graph, cuts from the dynamic programme."""

from __future__ import annotations

from pipepar.model.cut import cut_table, parts
from pipepar.model.graph import Graph
from pipepar.plan.partition import partition
from pipepar.plan.plan import Plan, StagePlan


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
    table = cut_table(graph)
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
