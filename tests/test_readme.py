"""The files, modules and tests that the documents mention exist."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.mutation.parts import PARTS

HERE = Path(__file__).parent
ROOT = HERE.parent
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (HERE / "README.md").read_text())))

DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(
        ROOT / folder / "README.md"
        for folder in ("benchmarks", "examples", "launch", "tests", "tests/gpu")
    ),
]
PATHS = [
    (document.relative_to(ROOT).as_posix(), path)
    for document in sorted(DOCUMENTS)
    for path in sorted(set(re.findall(r"`([\w/.-]+\.(?:py|hpp|cpp|sh))`", document.read_text())))
    if "NAME" not in path
]
IMPORTS = sorted(
    {
        found
        for document in DOCUMENTS
        for found in re.findall(r"from (pipepar[\w.]*) import (\w+)", document.read_text())
    }
)


@pytest.mark.parametrize(("file", "test"), NAMED, ids=lambda word: word or "all")
def test_tests_in_the_readme_exist(file: str, test: str) -> None:
    source = (HERE / file).read_text()
    assert f"def {test}(" in source or not test


@pytest.mark.parametrize(("document", "path"), PATHS)
def test_files_in_documents_exist(document: str, path: str) -> None:
    folders = [ROOT, (ROOT / document).parent, ROOT / "pipepar", ROOT / "tests"]
    below = (file for folder in folders[2:] for file in folder.rglob(Path(path).name))
    named = [*(folder / path for folder in folders), *below]
    assert any(file.is_file() and f"/{file}".endswith(f"/{path}") for file in named)


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_imports_in_documents_exist(module: str, name: str) -> None:
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize("part", PARTS)
def test_modules_and_tests_of_mutation_parts_exist(part: str) -> None:
    assert [each for each in PARTS[part].modules if find_spec(each) is None] == []
    assert [each for each in PARTS[part].tests if not (ROOT / each).exists()] == []
