"""Runs ranks_gpu.py under mpirun with 1, 2, 3 and 4 ranks: a GPU each, or several on one."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.helpers.cluster.gpus import NO_GPU, Gpus, NoPlace, place
from tests.helpers.cluster.rank_files import passed, run_files

pytestmark = pytest.mark.gpu

SECONDS = 300
FILE = Path(__file__).parent / "ranks_gpu.py"
EVERYWHERE = "everywhere or waits"
"""Tests all of whose ranks have a GPU; the others leave some on their host."""


@pytest.fixture(autouse=True, scope="module")
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_gpu_for_every_rank(ranks: int, tmp_path: Path) -> None:
    run(ranks, EVERYWHERE, env_for(ranks), tmp_path)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_not_from_one_gpus_memory_to_anothers(ranks: int, tmp_path: Path) -> None:
    """NCCL then goes by the host's memory, as it does between GPUs that cannot reach each other."""
    run(ranks, EVERYWHERE, {**env_for(ranks), "NCCL_P2P_DISABLE": "1"}, tmp_path)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_some_ranks_on_their_host(ranks: int, tmp_path: Path) -> None:
    try:
        env = env_for(ranks)
    except pytest.skip.Exception:
        env = {}  # those patterns are left that need no more GPUs than there are
    run(ranks, f"not ({EVERYWHERE})", env, tmp_path)


def env_for(ranks: int) -> Mapping[str, str]:
    try:
        return place(ranks, Gpus.seen()).env
    except NoPlace as error:
        pytest.skip(str(error))


def run(ranks: int, tests: str, env: Mapping[str, str], tmp_path: Path) -> None:
    ended = run_files([FILE], ranks, tmp_path, SECONDS, ["-k", tests], env)
    assert ended.status == 0, f"{ranks} ranks, {tests}, {env}:\n{ended.output[-12000:]}"
    if not passed(ended):
        reasons = sorted(set(re.findall(r"SKIPPED \[\d+\] \S+ (.+)", ended.output)))
        assert reasons, ended.output[-2000:]
        pytest.skip("; ".join(reasons))
