"""A plan's predicted times, as a table and a few lines to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipepar.runtime.figures import bar, readable_bytes

if TYPE_CHECKING:
    from pipepar.plan.plan import Plan
    from pipepar.runtime.prediction import Prediction

_BAR: Final = 20
_COLUMNS: Final = ("stage", "device", "operations", "weights", "memory", "compute", "transfer")


def print_shares(plan: Plan, console: Console) -> None:
    """Print each stage's share of the counted work. *Local.*

    Args:
        plan: the plan.
        console: where to.
    """
    table = _empty("stage", "operations", "weights", "compute")
    table.add_column(min_width=_BAR)
    table.add_column("receives")
    largest = max((stage.flops for stage in plan.stages), default=0) or 1
    total = sum(stage.flops for stage in plan.stages) or 1
    for stage in plan.stages:
        table.add_row(
            str(stage.index),
            f"{stage.begin}-{stage.end - 1}",
            readable_bytes(stage.weight_bytes),
            f"{stage.flops / total:.0%}",
            bar(stage.flops / largest, _BAR),
            received(plan, stage.index),
        )
    console.print(table)


def print_prediction(plan: Plan, prediction: Prediction, console: Console) -> None:
    """Print each stage's figures, and what the whole pipeline would do. *Local.*

    Args:
        plan: the plan.
        prediction: what it would take.
        console: where to.
    """
    timeline, target = prediction.timeline, prediction.target
    console.print(_table(plan, prediction))
    console.print(
        f"[bold]predicted: {prediction.samples_per_second:,.1f} samples/s[/] for "
        f"{target.microbatches:,} micro-batches of {target.micro_batch}, depth {target.depth} · "
        f"{timeline.efficiency:.0%} of the perfect pipeline's speed (bound "
        f"{_seconds(timeline.bound)}) · full after {_seconds(timeline.fill)}, drains in "
        f"{_seconds(timeline.drain)}"
    )


def received(plan: Plan, stage: int) -> str:
    """What a stage receives and from which, in words. *Local.*"""
    sources = [
        f"{', '.join(names)} from {producer}"
        for (producer, consumer), names in sorted(plan.edges.items())
        if consumer == stage
    ]
    return "; ".join(sources) or "the input"


def _empty(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, justify="left" if column == "device" else "right")
    return table


def _table(plan: Plan, prediction: Prediction) -> Table:
    table = _empty(*_COLUMNS, "of slowest")
    table.add_column(min_width=_BAR)
    table.add_column("receives")
    slowest = prediction.bottleneck or 1.0
    for stage, cost in zip(plan.stages, prediction.stages, strict=True):
        share = cost.slowest / slowest
        table.add_row(
            str(stage.index),
            escape(cost.device.kind),
            f"{stage.begin}-{stage.end - 1}",
            readable_bytes(stage.weight_bytes),
            f"{readable_bytes(round(cost.memory))} of {readable_bytes(round(cost.device.memory))}",
            _seconds(cost.compute),
            _seconds(cost.transfer) if stage.index else "",
            f"{share:.0%}",
            bar(share, _BAR),
            received(plan, stage.index),
        )
    return table


def _seconds(seconds: float) -> str:
    """A time as one reads it, such as 1.5 ms."""
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{seconds * scale:,.3g} {unit}"
    return f"{seconds * 1e6:,.3g} us"
