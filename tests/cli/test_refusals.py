"""The command line in one process: jobs that cannot work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.helpers import factories
from tests.helpers.folders import picture_folder
from tests.helpers.jobs.command import MLP, pipepar


def _truncated(tmp: Path) -> Path:
    path = tmp / "w.safetensors"
    save_file(factories.mlp().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-8])
    return path


def _lacking(tmp: Path) -> Path:
    path, state = tmp / "w.safetensors", factories.mlp().state_dict()
    del state["2.weight"]
    save_file(state, path)
    return path


def _file(tmp: Path) -> Path:
    (tmp / "file.txt").write_text("text\n")
    return tmp / "file.txt"


def _vision(tmp: Path) -> Path:
    return picture_folder(tmp / "vit")


def _doubles(tmp: Path) -> Path:
    np.save(tmp / "doubles.npy", np.zeros((3, 4)))
    return tmp / "doubles.npy"


def _wide(tmp: Path) -> Path:
    np.save(tmp / "wide.npy", np.zeros((3, 5), np.float32))
    return tmp / "wide.npy"


Case = tuple[str, Callable[[Path, Path], list[Any]], str]
CASES: list[Case] = [
    ("no model", lambda t, r: [t / "nowhere", _file(t), t / "o.npy"], "no config.json"),
    ("no module", lambda t, r: ["no.such:model", r, t / "o.npy"], "no module 'no'"),
    (
        "no factory",
        lambda t, r: ["tests.helpers.factories:gone", r, t / "o.npy"],
        "no 'gone' in module",
    ),
    (
        "no nn.Module",
        lambda t, r: ["tests.helpers.factories:no_module", r, t / "o.npy"],
        "returned a int, expected an nn.Module",
    ),
    ("no input", lambda t, r: [MLP, t / "gone.npy", t / "o.npy"], "gone.npy"),
    ("input suffix", lambda t, r: [MLP, t / "in.csv", t / "o.npy"], "in.csv"),
    ("text without tokenizer", lambda t, r: [MLP, _file(t), t / "o.npy"], "has no tokenizer"),
    ("output suffix", lambda t, r: [MLP, r, t / "o.csv"], "'.csv'"),
    ("output folder", lambda t, r: [MLP, r, t / "no" / "o.npy"], "does not exist"),
    ("output is a folder", lambda t, r: [MLP, r, t], "o"),
    (
        "two outputs in .npy",
        lambda t, r: ["tests.helpers.factories:two", _two(t), t / "o.npy"],
        "returns 2 tensors (hidden, logits), expected one for a .npy file",
    ),
    (
        "input does not match",
        lambda t, r: ["tests.helpers.factories:two", r, t / "o.safetensors"],
        "the input gives 1 positional, but Two.forward takes",
    ),
    (
        "weights missing",
        lambda t, r: [MLP, r, t / "o.npy", "--weights", t / "w.safetensors"],
        "w.safetensors",
    ),
    (
        "weights truncated",
        lambda t, r: [MLP, r, t / "o.npy", "--weights", _truncated(t)],
        "w.safetensors",
    ),
    ("tensor missing", lambda t, r: [MLP, r, t / "o.npy", "--weights", _lacking(t)], "2.weight"),
    ("plan missing", lambda t, r: [MLP, r, t / "o.npy", "--plan", t / "gone.json"], "gone.json"),
    ("output is the input", lambda t, r: [MLP, r, r], "would overwrite the data of input"),
    (
        "trace folder",
        lambda t, r: [MLP, r, t / "o.npy", "--trace", t / "no" / "t"],
        "does not exist",
    ),
    ("trace is a folder", lambda t, r: [MLP, r, t / "o.npy", "--trace", t], "is a directory"),
    (
        "trace is the input",
        lambda t, r: [MLP, r, t / "o.npy", "--trace", r],
        "would overwrite the data of",
    ),
    (
        "trace is the output",
        lambda t, r: [MLP, r, t / "o.npy", "--trace", t / "o.npy"],
        "--trace and output are both",
    ),
    (
        "output is a part of the model",
        lambda t, r: [_vision(t), r, t / "vit" / "model.safetensors", "--task", "raw"],
        "would overwrite the data of model",
    ),
    ("float64", lambda t, r: [MLP, _doubles(t), t / "o.npy"], "array.astype('float32')"),
    ("features", lambda t, r: [MLP, _wide(t), t / "o.npy"], "takes 4 features, found shape"),
    (
        "a single number",
        lambda t, r: ["tests.helpers.factories:total", r, t / "o.npy"],
        "is a single number, expected a row for each sample",
    ),
    (
        "a dtype that .npy lacks",
        lambda t, r: ["tests.helpers.factories:halves", r, t / "o.npy"],
        "is torch.bfloat16, expected a dtype that .npy files support",
    ),
    (
        "feature-extraction of pictures",
        lambda t, r: [_vision(t), r, t / "o.npy"],
        "takes pixel_values, expected one that takes text for feature-extraction; give --task "
        "image-classification or raw",
    ),
    (
        "feature-extraction by a factory",
        lambda t, r: [MLP, r, t / "o.npy", "--task", "feature-extraction"],
        "feature-extraction is for a Hugging Face folder",
    ),
    (
        "padding without texts",
        lambda t, r: [MLP, r, t / "o.npy", "--padding", "max_length"],
        "--max-length and --padding apply only to texts",
    ),
    ("dtype", lambda t, r: [t / "m.pt2", r, t / "o.npy", "--dtype", "float16"], "exported with"),
]


def _two(tmp: Path) -> Path:
    np.savez(tmp / "two.npz", x=np.ones((2, 4), np.float32), y=np.ones((2, 4), np.float32))
    return tmp / "two.npz"


@pytest.mark.parametrize(("name", "arguments", "message"), CASES, ids=[case[0] for case in CASES])
def test_a_job_that_cannot_work_is_refused_before_it_starts(
    name: str,
    arguments: Callable[[Path, Path], list[Any]],
    message: str,
    rows: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in.csv").write_text("1,2\n")
    status, output = pipepar("run", *arguments(tmp_path, rows))
    assert status == 1, output
    assert message in output
    assert "Traceback" not in output
    assert "error: " in output
    assert not list(tmp_path.glob("*o.npy*"))


def test_srun_without_mpi_is_refused(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    status, output = pipepar("run", MLP, rows, tmp_path / "o.npy")
    assert status == 1
    assert "started 8 ranks" in output
    assert "srun --mpi=pmix" in output
