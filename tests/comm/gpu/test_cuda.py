"""What a GPU needs of its host, where there is none."""

import pytest
import torch

from pipepar.comm.gpu.cuda import _driver
from pipepar.errors import PipeparError


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a driver")
def test_a_missing_driver_is_told() -> None:
    with pytest.raises(PipeparError, match=r"driver is not there .*--device cpu"):
        _driver()
