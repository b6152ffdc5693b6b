"""docs/files.md lists exactly the files of pipepar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipepar"
SUFFIXES = {".py", ".pyi", ".hpp", ".cpp"}
ROW = re.compile(r"^\| `([^`]+)` \| (.*) \|$", re.MULTILINE)


def files_of_pipepar() -> set[str]:
    return {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*")
        if file.suffix in SUFFIXES
    }


def rows_of(page: str) -> list[tuple[str, str]]:
    """Return the file of each row, relative to pipepar, and its idea."""
    return [(file_of(name), idea) for name, idea in ROW.findall(page)]


def file_of(name: str) -> str:
    if name.endswith("/"):
        return f"{name}__init__.py".lstrip("/")
    return name if Path(name).suffix in SUFFIXES else f"{name}.py"


def differences(listed: Iterable[str], files: set[str]) -> list[str]:
    counts = Counter(listed)
    return sorted(
        [f"{name} is not in the table" for name in files - counts.keys()]
        + [f"{name} is in the table and does not exist" for name in counts.keys() - files]
        + [f"{name} is in the table {count} times" for name, count in counts.items() if count > 1]
    )


def test_the_table_lists_all_files_of_pipepar() -> None:
    listed = [name for name, _ in rows_of((ROOT / "docs" / "files.md").read_text())]
    assert differences(listed, files_of_pipepar()) == []


def test_each_file_has_its_own_idea() -> None:
    rows = [
        (Path(name).parent, idea)
        for name, idea in rows_of((ROOT / "docs" / "files.md").read_text())
    ]
    assert [each for each, count in Counter(rows).items() if count > 1 or not each[1]] == []


PAGE = """
| file | idea |
|---|---|
| `comm/` | ranks |
| `comm/world` | all ranks |
| `comm/native/beat.hpp` | a datagram |
"""
FILES = {"comm/__init__.py", "comm/world.py", "comm/native/beat.hpp"}


@pytest.mark.parametrize(
    ("page", "files", "difference"),
    [
        (PAGE, FILES, []),
        (PAGE, FILES | {"comm/new.py"}, ["comm/new.py is not in the table"]),
        (PAGE, FILES - {"comm/world.py"}, ["comm/world.py is in the table and does not exist"]),
        (PAGE + "| `comm/world` | twice |\n", FILES, ["comm/world.py is in the table 2 times"]),
    ],
)
def test_differences_are_reported(page: str, files: set[str], difference: list[str]) -> None:
    assert differences([name for name, _ in rows_of(page)], files) == difference
