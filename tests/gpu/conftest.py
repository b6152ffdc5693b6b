"""What tests of a GPU share; where there is none, they are skipped."""

import pytest
import torch

from pipepar.comm.gpu import CudaGpu
from pipepar.comm.nccl import Nccl


@pytest.fixture
def gpu() -> CudaGpu:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return CudaGpu(torch.device("cuda", 0))


@pytest.fixture
def nccl(gpu: CudaGpu) -> Nccl:
    return Nccl.load()
