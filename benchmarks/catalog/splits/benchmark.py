"""Bottlenecks of published splits, compared with the splits of pipepar, on published costs.

All figures follow from the numbers in this folder, so they are the same on every machine.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Final

from benchmarks.catalog.splits.example import SLACK, Example, Split, examples
from benchmarks.shared.benchmark import Benchmark, Goal
from benchmarks.shared.report import Figure, Row
from benchmarks.shared.run import Run
from pipepar.plan.costs import LinkCost

_COLUMNS: Final = ["split", "layers of each stage", "bottleneck, s", "theirs / this"]
_GOALS: Final = {
    slack: Goal(f"theirs / ours, slack {slack:g}", "at least", 1 / (1 + slack))
    for slack in (0.0, SLACK)
}


def measure(run: Run) -> None:
    """Evaluate every example over each of its links."""
    for example in examples():
        run.report.note(f"{example.name}. {example.source}; {example.files}")
        for name, link in example.links.items():
            _compare(run, example, name, link)


def _compare(run: Run, example: Example, name: str, link: LinkCost) -> None:
    theirs = example.bottleneck(example.theirs, link)
    title = f"{example.name}, transfers: {name}"
    layers = len(example.crossing)
    rows: list[Row] = [["theirs", _stages(example.theirs, layers), f"{theirs:.4f}", ""]]
    for slack, goal in _GOALS.items():
        split = example.ours(link, slack)
        seconds = example.bottleneck(split, link)
        over = theirs / seconds
        shown = _stages(split, layers)
        rows.append([f"ours, slack {slack:g}", shown, f"{seconds:.4f}", f"{over:.3f}"])
        run.report.goal(goal, Figure((over,)), title)
    least = example.smallest(link)
    rows.append(["smallest possible", "", f"{least:.4f}", f"{theirs / least:.3f}"])
    run.report.table(title, _COLUMNS, rows)


def _stages(split: Split, layers: int) -> str:
    """Return the kind of device and the number of layers of each stage, as text."""
    sizes = [end - begin for begin, end in pairwise((0, *split.cuts, layers))]
    stages = groupby(zip(split.kinds, sizes, strict=True), key=lambda stage: stage[0])
    return ", ".join(" ".join([kind, *(str(size) for _, size in group)]) for kind, group in stages)


BENCHMARK: Final = Benchmark(
    question="are the splits of other systems reached?",
    duration="seconds",
    measure=measure,
    goals=tuple(_GOALS.values()),
)
