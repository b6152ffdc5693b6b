"""Placeholder rows of samples without results, which cannot be mistaken for results."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from pipepar.data.writers.open_output import open_output
from pipepar.errors import InputError
from tests.helpers.jobs.outputs import SUFFIXES, only, read


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *product(SUFFIXES[:2], [torch.float16, torch.float64, torch.complex64, torch.int8]),
        ("npy", torch.complex128),
        ("safetensors", torch.bfloat16),
    ],
    ids=str,
)
def test_placeholder_rows(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    """NaN in floats and complex numbers, 0 in other dtypes."""
    path = tmp_path / f"y.{suffix}"
    with open_output(path, 70) as writer:
        writer.write(torch.tensor([1]), {"y": torch.ones(1, 2, dtype=dtype)})
        writer.write_blank(torch.tensor([0, *range(2, 70)]))  # more than are written at a time
    found = read(path)["y"]
    assert found.dtype == dtype
    assert torch.equal(found[1], torch.ones(2, dtype=dtype))
    blank = torch.cat([found[:1], found[2:]])
    assert (blank == 0).all() if dtype == torch.int8 else blank.isnan().all()


def test_placeholder_lines(tmp_path: Path) -> None:
    with open_output(tmp_path / "y.jsonl", 3) as writer:
        writer.write(torch.tensor([1]), {"y": torch.ones(1)})
        writer.write_blank(torch.tensor([2, 0]))
    assert (tmp_path / "y.jsonl").read_text() == 'null\n{"y": 1.0}\nnull\n'


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_placeholders_need_one_result(tmp_path: Path, suffix: str) -> None:
    with (
        pytest.raises(InputError, match="no sample has a result, so the shape and dtype of a row"),
        open_output(tmp_path / f"y.{suffix}", 2) as writer,
    ):
        writer.write_blank(torch.tensor([0, 1]))
    assert only(tmp_path)
