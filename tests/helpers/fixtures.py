"""Fixtures of all tests."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipepar.supervision.signals import SIGNALS, release


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and the ranks that they start, from using the user's cache of measured times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Restore the signal handlers that a command in this process has changed."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)
    release()


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test look like a single process that no launcher has started."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # One process needs no MPI, but an earlier test may have imported it.
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    # COLUMNS and LINES come from pytest-xdist, the others from launchers.
    for name in ("SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE", "RANK", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((11, 4), dtype=np.float32))
    return path
