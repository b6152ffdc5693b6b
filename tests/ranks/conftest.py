"""Each rank's own temporary folder, one thread a rank, and a world for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipepar.comm.world import World


def pytest_configure(config: pytest.Config) -> None:
    from mpi4py import MPI

    config.option.basetemp = Path(f"{config.option.basetemp}{MPI.COMM_WORLD.rank}")
    torch.set_num_threads(1)


@pytest.fixture
def world() -> Iterator[World]:
    world = World.start()
    yield world
    world.close()
