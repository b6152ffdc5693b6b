"""What tests of a GPU share; where there is none, they are skipped."""

import pytest
import torch

from benchmarks.gpus import NO_GPU
from pipepar.comm.gpu import CudaGpu
from pipepar.comm.launcher import launched
from pipepar.comm.nccl import Nccl
from tests.ranks import conftest as ranks


def pytest_configure(config: pytest.Config) -> None:
    if launched():
        ranks.pytest_configure(config)


@pytest.fixture
def gpu() -> CudaGpu:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return CudaGpu(torch.device("cuda", 0))


@pytest.fixture
def nccl(gpu: CudaGpu) -> Nccl:
    return Nccl.load()
