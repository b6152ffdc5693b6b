"""The accuracy, precision and recall of a classification, printed."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipepar.report.confusion import ClassQuality, Confusion

# Up to 30 classes are all printed; of more classes, the 15 with the smallest recall.
_MOST: Final = 30
_WORST: Final = 15


def print_confusion(confusion: Confusion, console: Console) -> None:
    """Print the accuracy, and the precision and recall of the classes; nothing without samples.

    Args:
        confusion: the confusion matrix of a whole run.
        console: the console to print to.
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
        # A name may contain markup of rich.
        table.add_row(escape(each.name), f"{each.samples:,}", *shares)
    console.print(table)


def _worst(classes: list[ClassQuality]) -> list[ClassQuality]:
    """Return the 15 classes with the smallest recall, the smallest first.

    Of classes with equal recall, the one with more samples is first. Classes without samples are
    left out.
    """
    known = [each for each in classes if each.recall is not None]
    return sorted(known, key=lambda each: (each.recall, -each.samples))[:_WORST]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
