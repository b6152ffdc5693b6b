"""The table of the positions where a model can be cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table

from pipepar.format import bar, readable_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from pipepar.model.split.crossing import Cut, CutTable
    from pipepar.plan.plan import Plan

_BAR: Final = 10


def print_cuts(table: CutTable, plan: Plan | None, console: Console) -> None:
    """Print a line for each legal cut, and the number of cuts.

    Args:
        table: the cuts.
        plan: its cuts are marked with the stage that begins there; None to mark none.
        console: the output.
    """
    begins = {stage.begin: stage.index for stage in plan.stages} if plan else {}
    console.print(_table(table, begins))
    single = sum(cut.tensors == 1 for cut in table.cuts)
    console.print(
        f"{len(table.costs):,} operations, {len(table.cuts):,} legal cuts, {single:,} of one tensor"
    )


def _table(table: CutTable, begins: Mapping[int, int]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("module", "after", "tensors", "bytes", "work before", "", ""):
        right = column in ("tensors", "bytes", "work before")
        # In a narrow terminal, only the names of modules wrap.
        wraps = column == "module"
        shown.add_column(
            column,
            justify="right" if right else "left",
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
        )
    for cut in table.cuts:
        stage = begins.get(cut.position)
        shown.add_row(
            *_cells(cut),
            "" if stage is None else f"<- stage {stage}",
            style="" if stage is None else "bold yellow",
        )
    return shown


def _cells(cut: Cut) -> tuple[str, ...]:
    return (
        escape(cut.module) or "(model)",
        escape(cut.operation),
        str(cut.tensors),
        readable_bytes(cut.nbytes),
        f"{cut.done:.1%}",
        bar(cut.done, _BAR),
    )
