"""What a split is worth on published costs: the one published with them, and ours.

    python -m benchmarks.published

All figures follow from the numbers in this folder, so that they are the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby, pairwise
from typing import Final

from benchmarks.published.example import SLACK, Example, Split, examples
from benchmarks.report import Figure, Goal, Report
from pipepar.plan.costs import LinkCost

_COLUMNS: Final = ["split", "layers of each stage", "bottleneck, s", "theirs / this"]


def shown(split: Split, layers: int) -> str:
    """How many layers each stage has, behind the kind of device that takes it."""
    sizes = [end - begin for begin, end in pairwise((0, *split.cuts, layers))]
    stages = groupby(zip(split.kinds, sizes, strict=True), key=lambda stage: stage[0])
    return ", ".join(" ".join([kind, *(str(size) for _, size in group)]) for kind, group in stages)


def compared(report: Report, example: Example, name: str, link: LinkCost) -> list[Goal]:
    """Print one example over one kind of link, and return what it should reach."""
    theirs = example.bottleneck(example.theirs, link)
    title = f"{example.name}, transfers: {name}"
    layers = len(example.crossing)
    rows = [["theirs", shown(example.theirs, layers), f"{theirs:.4f}", ""]]
    goals = []
    for slack, limit in ((0.0, 1.0), (SLACK, 1 / (1 + SLACK))):
        split = example.ours(link, slack)
        seconds = example.bottleneck(split, link)
        who = f"ours, slack {slack:g}"
        rows.append([who, shown(split, layers), f"{seconds:.4f}", f"{theirs / seconds:.3f}"])
        goals.append(
            Goal(f"{title}: theirs / {who}", "at least", limit, Figure((theirs / seconds,)))
        )
    least = example.smallest(link)
    rows.append(["smallest there is", "", f"{least:.4f}", f"{theirs / least:.3f}"])
    report.table(title, _COLUMNS, rows)
    return goals


def main() -> int:
    """Evaluate every example over each of its links, and print what came out."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    report = Report("published: other systems' costs and splits", ranks=1)
    goals: list[Goal] = []
    for example in examples():
        report.note(f"{example.name}. {example.source}; {example.files}")
        for name, link in example.links.items():
            goals += compared(report, example, name, link)
    report.goals(goals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
