"""The plan for given cuts."""

from __future__ import annotations

from collections.abc import Sequence

from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable
from pipepar.model.split.cut import parts
from pipepar.plan.plan import Plan, StagePlan


def plan_of(
    graph: Graph,
    table: CutTable,
    cuts: Sequence[int],
    micro_batch: int | None = None,
    depth: int | None = None,
    ranks: tuple[int, ...] | None = None,
) -> Plan:
    """Return the plan that cuts a model at the given positions.

    Args:
        graph: the captured model.
        table: its counted costs.
        cuts: position of the first node of each stage except stage 0, ascending; all legal.
        micro_batch: samples in a micro-batch; None if the run decides.
        depth: micro-batches that may wait on each end of a channel; None if the run decides.
        ranks: the rank of each stage; None for stage k on rank k.

    Raises:
        PlanError: the cuts are not ascending, or the ranks do not match the stages.
    """
    return Plan(
        model=graph.digest,
        inputs=graph.inputs,
        outputs=graph.outputs,
        micro_batch=micro_batch,
        depth=depth,
        ranks=ranks,
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
