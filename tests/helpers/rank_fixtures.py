"""Each rank's own temporary folder, one thread a rank, and a world for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipepar.comm.world import World
from pipepar.model.capture import capture
from pipepar.model.graph import Graph
from tests.helpers.models import six_layers


def configure(config: pytest.Config) -> None:
    """Give this rank a temporary folder of its own, and one thread."""
    from mpi4py import MPI

    config.option.basetemp = Path(f"{config.option.basetemp}{MPI.COMM_WORLD.rank}")
    torch.set_num_threads(1)


@pytest.fixture
def world() -> Iterator[World]:
    world = World.start()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for all ranks, new for each test."""
    world = World.start()
    path = Path(world.broadcast(str(tmp_path_factory.mktemp("cache"))))
    world.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "pipepar"


@pytest.fixture
def graph() -> Graph:
    return capture(six_layers(), (torch.randn(4, 8),), {})
