"""Runs every ranks_*.py on 1, 2, 3 and 4 ranks. pytest does not collect those files itself."""

from pathlib import Path

import pytest

from tests.helpers.cluster.rank_files import failures

pytestmark = pytest.mark.long(180)

SECONDS = 300
FILES = sorted(Path(__file__).parent.glob("ranks_*.py"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks(ranks: int, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    marks = pytestconfig.option.markexpr
    seconds = SECONDS if "not full" in marks else 3 * SECONDS
    found = failures(FILES, ranks, tmp_path, seconds, marks)
    assert not found, found
