"""Assembles benchmarks/README.md from the introduction, the questions and the published reports.

A published report is a Markdown file of `benchmarks/published` with the benchmark's name. Its
figures are between two markers, and ``--publish`` replaces only those; the paragraphs around them
are written by hand. A report that no benchmark measures begins with its own heading.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from benchmarks.shared.registry import benchmark_names, find_benchmark

FOLDER: Final = Path(__file__).parents[1]
README: Final = FOLDER / "README.md"
PUBLISHED: Final = FOLDER / "published"

_BEGIN: Final = "<!-- measured -->\n"
_END: Final = "<!-- end of measured -->\n"
_MEASURED: Final = re.compile(f"{_BEGIN}.*?{_END}", re.DOTALL)


def readme() -> str:
    """Return the text of README.md."""
    reports = {path.stem: path.read_text(encoding="utf-8") for path in PUBLISHED.glob("*.md")}
    introduction = reports.pop("introduction").replace("{commands}", _commands())
    sections = [
        f"## {name}: {find_benchmark(name).question}\n\n"
        + reports.pop(name, "There are no figures yet.\n")
        for name in benchmark_names()
    ]
    text = "\n".join([introduction, *sections, *(reports[name] for name in sorted(reports))])
    return text.replace(_BEGIN, "").replace(_END, "")


def publish(name: str, figures: str) -> None:
    """Replace the figures of a published report.

    Args:
        name: the name of the benchmark.
        figures: the new figures, as Markdown.
    """
    path = PUBLISHED / f"{name}.md"
    measured = f"{_BEGIN}{figures}{_END}"
    text = path.read_text(encoding="utf-8") if path.exists() else measured
    path.write_text(_MEASURED.sub(lambda _: measured, text, count=1), encoding="utf-8")


def _commands() -> str:
    width = 2 + max(map(len, benchmark_names()))
    return "\n".join(
        f".venv/bin/python -m benchmarks {name:{width}}  # {find_benchmark(name).duration}"
        for name in benchmark_names()
    )
