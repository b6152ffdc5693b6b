"""Jobs on GPUs that fail: all ranks end within seconds, and the cause is reported."""

import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.cluster.gpus import NO_GPU, Gpus, NoPlace, place
from tests.helpers.cluster.mpirun import Finished, run_ranks
from tests.helpers.jobs.traps import LIMIT, with_plan

PATIENCE = 120.0
"""Seconds for a job; starting CUDA and NCCL is slow on a busy host."""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((40, 4), np.float32))
    return path


def env_for(ranks: int) -> Mapping[str, str]:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    try:
        return place(ranks, Gpus.seen()).env
    except NoPlace as error:
        pytest.skip(str(error))


def job(
    model: str, rows: Path, tmp_path: Path, ranks: int, env: Mapping[str, str]
) -> tuple[Finished, float]:
    """Run a job; return its result and the seconds from the failure to its end."""
    clock = tmp_path / "clock"
    command = ["-m", "pipepar", "run", f"tests.helpers.factories:{model}", str(rows)]
    command += [str(tmp_path / "out.npy"), "--device", "cuda", *with_plan(model, ranks, tmp_path)]
    ended = run_ranks(ranks, command, PATIENCE, {"PIPEPAR_TEST_CLOCK": str(clock), **env})
    seconds = time.time() - float(clock.read_text()) if clock.exists() else 0.0
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert not (tmp_path / "out.npy").exists()
    return ended, seconds


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["kills_first", "kills_last"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_killed_rank(model: str, ranks: int, rows: Path, tmp_path: Path) -> None:
    """Kernels of the other ranks wait for it, and must not block their end."""
    ended, seconds = job(model, rows, tmp_path, ranks, env_for(ranks))
    assert 0 < seconds < LIMIT, ended.output
    assert "signal 9" in ended.output  # the launcher names the rank


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "ranks", "rank"),
    [("raises_last", 1, 0), ("raises_first", 2, 0), ("raises_last", 2, 1), ("raises_last", 3, 2)],
)
def test_an_exception_in_a_stage(
    model: str, ranks: int, rank: int, rows: Path, tmp_path: Path
) -> None:
    ended, seconds = job(model, rows, tmp_path, ranks, env_for(ranks))
    assert 0 < seconds < LIMIT, ended.output
    printed = " ".join(ended.output.split())
    assert f"stage {rank} failed on micro-batch 4, samples 8, 9: ValueError: sprung" in printed
    if ranks > 1:
        assert f"### pipepar: rank {rank} of {ranks} on " in printed


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_out_of_memory_in_a_stage(ranks: int, rows: Path, tmp_path: Path) -> None:
    ended, seconds = job("hoards_last", rows, tmp_path, ranks, env_for(ranks))
    assert 0 < seconds < LIMIT, ended.output
    last = ranks - 1
    printed = " ".join(ended.output.split())
    name = re.escape(torch.cuda.get_device_name(0)) if torch.cuda.device_count() == 1 else ".+"
    assert re.search(
        rf"stage {last} does not fit on {name} \(cuda:\d+\) of rank {last} on", printed
    )
    for words in (
        f"stage {last} failed on micro-batch 4, samples 8, 9",
        "with micro-batches of 2 and depth",
        "it takes",
        "are free now",
        "--micro-batch 1",
        "CUDA out of memory",
    ):
        assert words in printed, ended.output


def test_a_job_for_gpus_without_gpus(rows: Path, tmp_path: Path) -> None:
    ended, _ = job("mlp", rows, tmp_path, 2, {"CUDA_VISIBLE_DEVICES": ""})
    printed = " ".join(ended.output.split())
    assert printed.count("has no GPU to compute on") == 1, ended.output
    for words in (
        "rank 0 on ",
        "it sees no GPUs, CUDA_VISIBLE_DEVICES is ''",
        "expected a GPU for each rank, since device is 'cuda'",
        "or set device to 'auto' or 'cpu'",
    ):
        assert words in printed, ended.output
    assert "Traceback" not in ended.output
