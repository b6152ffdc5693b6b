"""Settings and fixtures of tests that run on several ranks."""

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
    """Give this rank its own temporary folder, and one thread."""
    from mpi4py import MPI

    config.addinivalue_line("markers", "usual: runs on this number of ranks without `full`")
    if config.option.basetemp:  # else pytest creates a folder for each process
        config.option.basetemp = Path(f"{config.option.basetemp}{MPI.COMM_WORLD.rank}")
    torch.set_num_threads(1)


@pytest.fixture
def world() -> Iterator[World]:
    world = World.start()
    yield world
    world.close()


def on_ranks(*sizes: int) -> pytest.MarkDecorator:
    """Return a mark: run on these numbers of ranks; `make test-all` runs on every number."""
    from mpi4py import MPI

    return pytest.mark.usual if MPI.COMM_WORLD.size in sizes else pytest.mark.full


def all_equal(world: World, value: object) -> bool:
    """Return whether a value has the same repr on all ranks. *Collective.*"""
    return len(set(world.all_gather(repr(value)))) == 1


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all ranks share."""
    world = World.start()
    path = Path(world.broadcast(str(tmp_path_factory.mktemp("shared"))))
    world.close()
    return path


def set_affinity(cores: Iterable[int]) -> None:
    """Bind every thread of this process to some cores."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(thread, cores)


_tests = itertools.count()


@pytest.fixture(autouse=True)
def cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache folder for each test, which all ranks share.

    Its name is a counter, since the ranks run the same tests in the same order.
    """
    path = shared / f"cache{next(_tests)}"
    path.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "pipepar"


@pytest.fixture(autouse=True, scope="session")
def cached_graphs() -> Iterator[None]:
    """Trace each model of tests.helpers.models once for all tests with inputs of the same sizes.

    The type identifies the model, since these models have no constructor arguments.
    """
    graphs: dict[str, Graph] = {}

    def captured(module: nn.Module, args: Any, kwargs: Any) -> Graph:
        if type(module).__module__ != models.__name__:
            return capture(module, args, kwargs)
        sizes = pytree.tree_map_only(torch.Tensor, lambda x: (x.shape, x.dtype), (args, kwargs))
        key = f"{type(module).__qualname__} {sizes}"
        if key not in graphs:
            graphs[key] = capture(module, args, kwargs)
        return graphs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "capture", captured)
        yield


@pytest.fixture(autouse=True)
def brief_measurements(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure briefly: no test needs accurate times of devices or links."""
    if pytestconfig.option.markexpr == "not full":
        monkeypatch.setattr(links, "_SECONDS", 0.02)
        monkeypatch.setattr(timing, "_PACE_SECONDS", 0.02)


@pytest.fixture
def graph() -> Graph:
    return capture(six_layers(), (torch.randn(4, 8),), {})
