"""Roles come from the placement: no other code derives a role from a rank's number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.role_arithmetic import role_arithmetic

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipepar"

DEFINE_ROLES = ("pipepar/plan/placement.py", "pipepar/comm/group/")
"""Where roles are defined: the placement of a plan, and the root of a group."""

ALLOWED = {
    # A NCCL communicator has two ranks of its own: the producer is 0, the consumer 1. Each is the
    # peer of the other.
    ("pipepar/comm/gpu/nccl.py", "Communicator.start", "size - 1 - rank"),
}
"""File, function and text of expressions that look like a role but are none."""


def found_in(file: Path) -> list[tuple[str, str, str]]:
    name = file.relative_to(ROOT).as_posix()
    if name.startswith(DEFINE_ROLES):
        return []
    return [(name, each.function, each.text) for each in role_arithmetic(file.read_text())]


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_role_is_derived_from_a_rank(file: Path) -> None:
    assert set(found_in(file)) - ALLOWED == set()


def test_native_code_does_not_compare_ranks_with_numbers() -> None:
    for file in sorted(PACKAGE.rglob("*.[ch]pp")):
        assert re.findall(r".*\brank_? [!=]= \d.*", file.read_text()) == [], file.name


def test_all_allowed_expressions_exist() -> None:
    found = {each for file in PACKAGE.rglob("*.py") for each in found_in(file)}
    assert found & ALLOWED == ALLOWED


@pytest.mark.parametrize(
    "expression",
    [
        "world.rank == 0",
        "rank != 0",
        "0 < group.rank",
        "rank in (0, size - 1)",
        "self._comm.rank == self.size - 1",
        "launcher_rank() == 0",
        "size - 1 - rank",
        "world.size - 1",
        "self._world.size - 1",
        "'source' if rank else 'sink'",
        "not world.rank",
        "world.rank and world.size",
        "[each for each in x if each.rank]",
        "world.all_gather(text)[-1]",
        "json.loads(world.all_gather(text)[0])",
        "[json.loads(text) for text in world.all_gather(text)][0]",
        "world.gather(text, root=0)",
    ],
)
def test_role_arithmetic_is_found(expression: str) -> None:
    found = role_arithmetic(f"class A:\n    def f(self):\n        return {expression}\n")
    assert [(each.function, each.line) for each in found] == [("A.f", 3)]


def test_role_arithmetic_is_found_in_variables() -> None:
    (found,) = role_arithmetic(
        "def f(world):\n    texts = world.all_gather('')\n    return texts[-1]"
    )
    assert found.text == "texts[-1]"


@pytest.mark.parametrize(
    "expression",
    [
        "rank == placement.ends.sink",
        "world.all_gather(text)[world.root]",
        "json.loads(world.all_gather(text)[sink])[0]",
        "world.is_root",
        "len(rows) - 1",
        "(size - 1) * step",
        "stage == 0",
        "rank is None",
    ],
)
def test_other_expressions_are_not_reported(expression: str) -> None:
    assert role_arithmetic(f"x = {expression}") == []
