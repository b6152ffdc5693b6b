"""Every script of examples/ runs, in one process and on two ranks."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.helpers.cluster.mpirun import run_ranks

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGE = (EXAMPLES / "README.md").read_text()
SCRIPTS = sorted(file.name for file in EXAMPLES.glob("[!_]*.py"))
ON_RANKS = re.findall(r"mpirun -n 2 python examples/(\w+\.py)", PAGE)


def test_the_page_lists_every_script() -> None:
    assert sorted(re.findall(r"^\| `(\w+\.py)` ", PAGE, re.MULTILINE)) == SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs_in_one_process(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert capsys.readouterr().out


# One of them suffices for `make test`: what the others use is tested on ranks elsewhere.
@pytest.mark.parametrize(
    "script",
    [pytest.param(each, marks=[pytest.mark.full] * (each != "stream.py")) for each in ON_RANKS],
)
def test_an_example_runs_on_two_ranks(script: str) -> None:
    ended = run_ranks(2, [str(EXAMPLES / script)], seconds=100)
    assert ended.status == 0, ended.output
    assert ended.output.strip()
