"""`CudaGpu` on a host without a driver."""

import pytest
import torch

from pipepar.comm.gpu.cuda import _driver
from pipepar.errors import PipeparError


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a driver")
def test_a_missing_driver_is_an_error_with_a_remedy() -> None:
    with pytest.raises(PipeparError, match=r"driver is missing .*libcuda.*--device cpu"):
        _driver()
