"""Fixtures of the tests on real GPUs, which are skipped if there is none."""

import pytest
import torch

from pipepar.comm.gpu.cuda import CudaGpu
from pipepar.comm.gpu.nccl import Nccl
from pipepar.comm.group.launcher import launched
from tests.helpers.cluster.gpus import NO_GPU
from tests.helpers.rank_fixtures import cache as cache
from tests.helpers.rank_fixtures import configure
from tests.helpers.rank_fixtures import shared as shared
from tests.helpers.rank_fixtures import world as world


def pytest_configure(config: pytest.Config) -> None:
    if launched():
        configure(config)


@pytest.fixture
def gpu() -> CudaGpu:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return CudaGpu(torch.device("cuda", 0))


@pytest.fixture
def nccl(gpu: CudaGpu) -> Nccl:
    return Nccl.load()
