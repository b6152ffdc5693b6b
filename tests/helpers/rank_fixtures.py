"""A temporary folder and one thread for each rank, and a world for tests that ask for one."""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pipepar.comm.world import World
from pipepar.engine import assembly
from pipepar.host import link_speed as links
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.planner import op_benchmark as timing
from tests.helpers import models
from tests.helpers.models import six_layers


def configure(config: pytest.Config) -> None:
    """Give this rank a temporary folder of its own, and one thread."""
    from mpi4py import MPI

    config.addinivalue_line("markers", "usual: every run has it, on this number of ranks")
    if config.option.basetemp:  # else pytest gives each process a folder of its own
        config.option.basetemp = Path(f"{config.option.basetemp}{MPI.COMM_WORLD.rank}")
    torch.set_num_threads(1)


@pytest.fixture
def world() -> Iterator[World]:
    world = World.start()
    yield world
    world.close()


def on_ranks(*sizes: int) -> pytest.MarkDecorator:
    """Marks what is to run on these numbers of ranks; `make test-all` runs it on every number."""
    from mpi4py import MPI

    return pytest.mark.usual if MPI.COMM_WORLD.size in sizes else pytest.mark.full


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all ranks."""
    world = World.start()
    path = Path(world.broadcast(str(tmp_path_factory.mktemp("shared"))))
    world.close()
    return path


def set_affinity(cores: Iterable[int]) -> None:
    """Let every thread of this process have these cores; one may end meanwhile."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


_tests = itertools.count()


@pytest.fixture(autouse=True)
def cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of all ranks, new for each test; they run the same tests in the same order."""
    path = shared / f"cache{next(_tests)}"
    path.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "pipepar"


@pytest.fixture(autouse=True, scope="session")
def graphs_made_once() -> Iterator[None]:
    """Models of tests.helpers.models, which take no arguments, are traced once for sizes."""
    made: dict[str, Graph] = {}

    def captured(module: nn.Module, args: Any, kwargs: Any) -> Graph:
        if type(module).__module__ != models.__name__:
            return capture(module, args, kwargs)
        sizes = pytree.tree_map_only(torch.Tensor, lambda x: (x.shape, x.dtype), (args, kwargs))
        key = f"{type(module).__qualname__} {sizes}"
        if key not in made:
            made[key] = capture(module, args, kwargs)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "capture", captured)
        yield


@pytest.fixture(autouse=True)
def brief_measuring(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pipelines measure devices and links; here no plan hangs on how well they do."""
    if pytestconfig.option.markexpr == "not full":
        monkeypatch.setattr(links, "_SECONDS", 0.02)
        monkeypatch.setattr(timing, "_PACE_SECONDS", 0.02)


@pytest.fixture
def graph() -> Graph:
    return capture(six_layers(), (torch.randn(4, 8),), {})
