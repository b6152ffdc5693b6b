"""The check that a given plan fits the model and the number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pipepar.errors import PlanError
from pipepar.format import readable_bytes
from pipepar.model.capture.graph import Graph
from pipepar.model.split.cut import parts
from pipepar.plan.plan import Plan

# The most differences that a message lists, and the most names in each.
_LINES: Final = 5
_NAMES: Final = 3


def require_fit(plan: Plan, graph: Graph, ranks: int) -> None:
    """Refuse a plan that was made for another model or number of ranks, or that was edited wrongly.

    Args:
        plan: the plan of the user.
        graph: the captured model.
        ranks: number of ranks in the job.

    Raises:
        PlanError: the plan does not fit; the message lists up to 5 differences, those of the number
            of ranks first.
    """
    about_ranks = list(_ranks(plan, ranks))
    about_model = list(_edited(plan, graph) if plan.model == graph.digest else _other(plan, graph))
    if about_model:
        again = f"mpirun -n {ranks} pipepar plan MODEL --input INPUT -o plan.json"
        remedy = f"plan again with this job's model, input, --task and --dtype: {again}"
    else:
        remedy = (
            f"start the job with mpirun -n {_needed(plan)}, or plan again with --stages {ranks}"
        )
    if about_ranks or about_model:
        raise PlanError(f"the plan does not fit:{_listed(about_ranks + about_model, remedy)}")


def _needed(plan: Plan) -> int:
    """Return the smallest number of ranks that can run the plan."""
    return len(plan.stages) if plan.ranks is None else max(plan.ranks) + 1


def _ranks(plan: Plan, ranks: int) -> Iterator[str]:
    """Yield the difference if the number of ranks does not fit the plan."""
    if plan.ranks is None and len(plan.stages) != ranks:
        yield f"it has {len(plan.stages)} stages, the job has {ranks} rank{'s' * (ranks > 1)}"
    elif _needed(plan) > ranks:
        yield f"it has a stage on rank {max(plan.ranks or ())}, the job has ranks 0 to {ranks - 1}"


def _other(plan: Plan, graph: Graph) -> Iterator[str]:
    """Yield the differences between the plan and a model with another digest; at least one."""
    found = [*_operations(plan, graph), *_weights(plan, graph), *_values(plan, graph)]
    yield from found or [
        f"all names and sizes in it agree, but it was made for model {plan.model[:12]}, found "
        f"{graph.digest[:12]}: inner sizes or constants, the kind of device, or the version of "
        "torch or transformers differ"
    ]


def _edited(plan: Plan, graph: Graph) -> Iterator[str]:
    """Yield the differences between the stages of the plan and those that its cuts give.

    The plan has the digest of the graph, so a difference means that the file was edited.
    """
    found = [*_operations(plan, graph), *_values(plan, graph)]
    yield from found
    if found:
        return
    cuts = [stage.begin for stage in plan.stages[1:]]
    for stage, part in zip(plan.stages, parts(graph, cuts), strict=True):
        if stage.weight_bytes != part.weight_bytes:
            yield (
                f"its stage {stage.index} has {stage.weight_bytes:,} bytes of weights, operations "
                f"{stage.begin}-{stage.end - 1} have {part.weight_bytes:,}: was the file edited?"
            )
        for what in ("inputs", "outputs", "weights"):
            planned, needed = getattr(stage, what), getattr(part, what)
            if planned != needed:
                yield (
                    f"{what} of its stage {stage.index} are {_few(planned)}, those of operations "
                    f"{stage.begin}-{stage.end - 1} are {_few(needed)}: was the file edited?"
                )


def _operations(plan: Plan, graph: Graph) -> Iterator[str]:
    planned, found = plan.stages[-1].end, len(graph.nodes)
    if planned != found:
        yield f"it divides {planned} operations, the model has {found}"


def _weights(plan: Plan, graph: Graph) -> Iterator[str]:
    planned = dict.fromkeys(name for stage in plan.stages for name in stage.weights)
    (whole,) = parts(graph, ())
    lacking = [name for name in planned if name not in whole.weights]
    unplanned = [name for name in whole.weights if name not in planned]
    if lacking:
        yield f"weights that only the plan has ({len(lacking)}): {_few(lacking)}"
    if unplanned:
        yield f"weights that only the model has ({len(unplanned)}): {_few(unplanned)}"
    if lacking:
        return
    sizes = {spec.name: spec.nbytes for spec in graph.weights.values()}
    before = sum(stage.weight_bytes for stage in plan.stages)
    now = sum(sizes[name] for stage in plan.stages for name in stage.weights)
    if before != now:
        yield (
            f"its weights take {readable_bytes(before)} in the plan, {readable_bytes(now)} in the "
            f"model: another --dtype, or other sizes?"
        )


def _values(plan: Plan, graph: Graph) -> Iterator[str]:
    if plan.inputs != graph.inputs:
        yield f"its inputs are {_few(plan.inputs)}, the model's are {_few(graph.inputs)}"
    if plan.outputs != graph.outputs:
        yield f"its outputs are {_few(plan.outputs)}, the model's are {_few(graph.outputs)}"
    known = {node.name for node in graph.module.graph.nodes}
    exchanged = dict.fromkeys(name for s in plan.stages for name in s.inputs + s.outputs)
    lacking = [name for name in exchanged if name not in known]
    if lacking:
        yield f"values of its stages that the model lacks ({len(lacking)}): {_few(lacking)}"


def _few(names: Iterable[str]) -> str:
    """Return the first names, and the number of the others, as a text for a message."""
    first, *more = [*names] or ["none"]
    shown, rest = [first, *more[: _NAMES - 1]], more[_NAMES - 1 :]
    return ", ".join(shown) + (f" and {len(rest)} more" if rest else "")


def _listed(differences: list[str], remedy: str) -> str:
    """Return the differences and the remedy: a single difference inline, several as a list."""
    if len(differences) == 1:
        return f" {differences[0]}; {remedy}"
    shown, rest = differences[:_LINES], differences[_LINES:]
    last = [f"and {len(rest)} more"] if rest else []
    return "\n".join(["", *(f"  - {line}" for line in shown + last), remedy])
