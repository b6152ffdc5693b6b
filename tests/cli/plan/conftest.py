"""Fixtures of tests of `pipepar plan`."""

from pathlib import Path

import pytest

DEVICES = """
[[device]]
kind = "gpu"
count = 2
memory = "1 GiB"
speed = "1 MFLOPS"

[[link]]
latency = "1 us"
bandwidth = "1 GB/s"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(DEVICES)
    return path
