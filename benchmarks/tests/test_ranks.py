"""ranks_gpu.py on 1, 2, 3 and 4 ranks. A plain pytest does not collect it."""

from pathlib import Path

import pytest

from tests.helpers.cluster.rank_files import failures


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks(ranks: int, tmp_path: Path) -> None:
    found = failures([Path(__file__).with_name("ranks_gpu.py")], ranks, tmp_path, seconds=120)
    assert not found, found
