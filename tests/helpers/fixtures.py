"""Fixtures that every test gets."""

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
    """No test reads or leaves measured times in the user's home, nor do the ranks it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A command that ran in this process leaves signals as they were."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)
    release()


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # In one process MPI is not needed; a test that ran before may have imported it.
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    # Of a launcher, and of pytest-xdist, whose 80 columns are no terminal's.
    for name in ("SLURM_STEP_NUM_TASKS", "FLUX_JOB_SIZE", "RANK", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((11, 4), dtype=np.float32))
    return path
