"""No import cycles, and no folder with too many files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parent.parent / "pipepar"
MOST_FILES = 14
"""Maximum number of Python files in a folder, including its ``__init__.py``."""


def cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another, directly or not, each sorted.

    These are the strongly connected components of the import graph, by Tarjan's algorithm.
    """
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        path.append(module)
        for imported in imports[module]:
            if imported not in index:
                visit(imported)
            if imported in path:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == index[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in imports:
        if module not in index:
            visit(module)
    return found


def imports_of_pipepar() -> dict[str, set[str]]:
    graph = grimp.build_graph("pipepar", cache_dir=None)
    # `pipepar` re-exports Pipeline, and every module imports its parent package.
    graph.remove_import(importer="pipepar", imported="pipepar.pipeline")
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_there_are_no_import_cycles() -> None:
    assert cycles(imports_of_pipepar()) == []


@pytest.mark.parametrize("importer", ["pipepar.errors", "pipepar.plan.costs", "pipepar.comm.world"])
def test_an_import_cycle_is_found(importer: str) -> None:
    imports = imports_of_pipepar()
    imports[importer].add("pipepar.jobs.run")
    (found,) = cycles(imports)
    assert {importer, "pipepar.jobs.run"} <= set(found)


def test_no_folder_has_too_many_files() -> None:
    files = Counter(str(file.parent.relative_to(PACKAGE.parent)) for file in PACKAGE.rglob("*.py"))
    assert {folder: count for folder, count in files.items() if count > MOST_FILES} == {}
