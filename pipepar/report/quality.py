"""How good a model's answers were, shown to a person."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipepar.report.confusion import ClassQuality, Confusion

_MOST: Final = 30
"""Classes that are shown in full."""
_WORST: Final = 15
"""Classes that are shown of more than that."""


def print_confusion(confusion: Confusion, console: Console) -> None:
    """Show accuracy, and how well each class was recognised; nothing without samples.

    Args:
        confusion: of a whole run.
        console: where to.
    """
    if not confusion.samples:
        return
    classes = confusion.classes()
    console.print(
        f"[bold]accuracy {_share(confusion.accuracy)}[/] of {confusion.samples:,} samples in "
        f"{len(classes)} classes",
        highlight=False,
    )
    if len(classes) > _MOST:
        classes = _worst(classes)
        console.print(f"the {len(classes)} classes with the smallest recall:", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("class", "samples", "precision", "recall"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for each in classes:
        shares = _share(each.precision), _share(each.recall)
        # A name may hold what rich would take for markup.
        table.add_row(escape(each.name), f"{each.samples:,}", *shares)
    console.print(table)


def _worst(classes: list[ClassQuality]) -> list[ClassQuality]:
    """Those of which the smallest share was found, the larger class first where that is equal."""
    known = [each for each in classes if each.recall is not None]
    return sorted(known, key=lambda each: (each.recall, -each.samples))[:_WORST]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
