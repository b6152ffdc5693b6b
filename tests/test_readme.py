"""The README of the tests names tests that exist."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (HERE / "README.md").read_text())))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=lambda word: word or "all")
def test_a_test_that_is_named_exists(file: str, test: str) -> None:
    source = (HERE / file).read_text()
    assert f"def {test}(" in source or not test
