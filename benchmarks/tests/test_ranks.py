"""Runs ranks_gpu.py, which pytest does not collect, on several ranks."""

from pathlib import Path

import pytest

from tests.helpers.cluster.rank_files import failures

pytestmark = pytest.mark.long(40)


@pytest.mark.parametrize(
    "ranks", [1, 2, *(pytest.param(n, marks=pytest.mark.full) for n in (3, 4))]
)
def test_ranks(ranks: int, tmp_path: Path) -> None:
    found = failures([Path(__file__).with_name("ranks_gpu.py")], ranks, tmp_path, seconds=120)
    assert not found, found
