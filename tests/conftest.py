"""What tests of one process share."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# A busy machine may take its time for an example; that is no failure.
settings.register_profile("pipepar", deadline=None)
settings.load_profile("pipepar")


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # In one process MPI is not needed; a test that ran before may have imported it.
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    torch.set_num_threads(1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((11, 4), dtype=np.float32))
    return path
