"""--weights-from root: rank 1 does not see the model's folder."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import factories
from tests.helpers.cluster.mpirun import finish, mpirun, start
from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import pipepar

pytestmark = pytest.mark.long(60)

SECONDS = 120


def run_apart(tmp_path: Path, *arguments: object) -> tuple[int, str]:
    """Run two ranks; only the working directory of rank 0 has files."""
    (tmp_path / "empty").mkdir()
    here = str(Path(__file__).parents[2])
    rank = [sys.executable, "-m", "pipepar", "run", *map(str, arguments)]
    command = [*mpirun(1, "--wdir", str(tmp_path)), *rank]
    command += [":", "-n", "1", "--wdir", str(tmp_path / "empty"), *rank]
    ended = finish(start(command, {"PYTHONPATH": here}), SECONDS)
    return ended.status, " ".join(ended.output.split())


def test_a_folder_that_only_rank_0_sees(tmp_path: Path) -> None:
    text_folder(tmp_path / "bert", "BertForSequenceClassification", num_labels=3)
    (tmp_path / "in.txt").write_text("the fox\na lazy dog\nquick fox jumps\n")
    options = ["--task", "text-classification", "--micro-batch", 2]
    alone = tmp_path / "alone.jsonl"
    status, text = pipepar("run", tmp_path / "bert", tmp_path / "in.txt", alone, *options)
    assert status == 0, text
    apart = tmp_path / "apart.jsonl"
    status, text = run_apart(tmp_path, "bert", "in.txt", apart, *options, "--weights-from", "root")
    assert status == 0, text
    assert apart.read_text() == alone.read_text()


def test_without_the_option_the_rank_that_sees_no_model_fails(tmp_path: Path) -> None:
    text_folder(tmp_path / "bert", "BertModel")
    (tmp_path / "in.txt").write_text("the fox\n")
    status, text = run_apart(tmp_path, "bert", "in.txt", tmp_path / "out.npy")
    assert status != 0
    assert "rank 1 of 2" in text
    assert "no config.json in bert" in text
    assert text.count("### pipepar") == 1


def test_a_checkpoint_that_only_rank_0_sees(tmp_path: Path) -> None:
    save_file(factories.mlp().state_dict(), tmp_path / "w.safetensors")
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--weights", "w.safetensors", "--weights-from", "root", "--micro-batch", 32]
    output = tmp_path / "y.npy"
    status, text = run_apart(tmp_path, "tests.helpers.factories:mlp", "x.npy", output, *options)
    assert status == 0, text
    with torch.no_grad():
        expected = factories.mlp()(torch.from_numpy(x))
    assert torch.equal(torch.from_numpy(np.load(output)), expected)
