"""Models of fixed sizes: reported, and other sizes are refused before the work."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import pipepar

pytestmark = pytest.mark.long(20)


class Rows(torch.nn.Module):
    """Reads the batch size in Python, so that tracing fixes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[row] * 2 for row in range(len(x))])


def rows() -> torch.nn.Module:
    return Rows()


@pytest.mark.parametrize(
    ("micro_batch", "message"), [(12, ""), (6, ""), (5, "--micro-batch=4, which divides them")]
)
def test_a_fixed_batch(tmp_path: Path, micro_batch: int, message: str) -> None:
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    np.save(tmp_path / "x.npy", x)
    output = tmp_path / "y.npy"
    options = ["--micro-batch", micro_batch]
    status, text = pipepar(
        "run", "tests.jobs.test_static_shapes:rows", tmp_path / "x.npy", output, *options
    )
    assert "note:" in text
    assert f"x must be [{micro_batch}, length]" in text
    if message:
        assert status == 1
        assert message in text
        assert "samples in" not in text
    else:
        assert status == 0, text
        assert np.array_equal(np.load(output), 2 * x)


def test_a_fixed_length(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaModel

    folder = text_folder(tmp_path / "mamba", "BertModel")  # for its tokenizer
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)
    MambaModel(config).save_pretrained(folder)
    (tmp_path / "in.txt").write_text("the fox\na lazy dog jumps over the quick fox\ndog\n")
    output = tmp_path / "out.npy"
    status, text = pipepar("run", folder, tmp_path / "in.txt", output)
    assert status == 1
    assert "give --padding max_length" in text
    options = ["--padding", "max_length", "--max-length", 10]
    status, text = pipepar("run", folder, tmp_path / "in.txt", output, *options)
    assert status == 0, text
    assert "input_ids must be [batch, 10]" in text
    assert np.load(output).shape == (3, 16)
