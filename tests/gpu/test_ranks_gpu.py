"""Runs ranks_gpu.py under mpirun with 1 to 4 ranks: one per GPU, or several on one GPU."""

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
EVERYWHERE = "everywhere or memory_does_not_grow"
"""Selects tests with a GPU for each rank; in all other tests some ranks compute on the host."""


@pytest.fixture(autouse=True, scope="module")
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_gpu_for_every_rank(ranks: int, tmp_path: Path) -> None:
    run(ranks, EVERYWHERE, env_for(ranks), tmp_path)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_transfers_through_host_memory(ranks: int, tmp_path: Path) -> None:
    """As between GPUs without peer-to-peer access."""
    run(ranks, EVERYWHERE, {**env_for(ranks), "NCCL_P2P_DISABLE": "1"}, tmp_path)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_some_ranks_on_their_host(ranks: int, tmp_path: Path) -> None:
    try:
        env = env_for(ranks)
    except pytest.skip.Exception:
        env = {}  # tests that need more GPUs are skipped
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
