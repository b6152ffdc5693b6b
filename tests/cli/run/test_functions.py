"""The command line in one process: --preprocess and --postprocess."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import factories, functions
from tests.helpers.folders import pixels, save_pictures
from tests.helpers.jobs.command import MLP, pipepar

HERE = "tests.helpers.functions:"


def expected(inputs: torch.Tensor, size: int) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([factories.mlp()(part) for part in torch.split(inputs, size)])


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_text_with_preprocess(tmp_path: Path, suffix: str) -> None:
    texts = ["a lazy dog", "", "banana", "x"]
    lines = texts if suffix == "txt" else [json.dumps({"text": text}) for text in texts]
    source = tmp_path / f"in.{suffix}"
    source.write_text("".join(line + "\n" for line in lines))
    status, output = pipepar(
        *("run", MLP, source, tmp_path / "o.npy", "--micro-batch", 3),
        *("--preprocess", HERE + "lengths"),
    )
    assert status == 0, output
    found = torch.from_numpy(np.load(tmp_path / "o.npy"))
    assert torch.equal(found, expected(functions.lengths(texts), 3))


def test_pictures_with_preprocess(tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", 5)
    status, output = pipepar(
        *("run", MLP, tmp_path / "in", tmp_path / "o.npy", "--micro-batch", 2),
        *("--preprocess", HERE + "corners"),
    )
    assert status == 0, output
    corners = torch.from_numpy(pixels(5)[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].copy()).float()
    wanted = expected(corners.contiguous(), 2)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "o.npy")), wanted)


def test_arrays_with_preprocess(rows: Path, tmp_path: Path) -> None:
    status, output = pipepar(
        *("run", MLP, rows, tmp_path / "o.npy", "--preprocess", HERE + "doubled")
    )
    assert status == 0, output
    doubled = torch.from_numpy(np.load(rows)) * 2
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "o.npy")), expected(doubled, 32))


def test_named_arrays_with_preprocess_and_postprocess(tmp_path: Path) -> None:
    x, y = torch.randn(2, 3, 4)
    np.savez(tmp_path / "in.npz", x=x.numpy(), y=y.numpy())
    status, output = pipepar(
        *("run", "tests.helpers.factories:two", tmp_path / "in.npz", tmp_path / "o.npy"),
        *("--preprocess", HERE + "swapped", "--postprocess", HERE + "logits_only"),
    )
    assert status == 0, output
    with torch.no_grad():
        logits = factories.two()(y, x)["logits"]
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "o.npy")), logits)


def test_postprocess_to_json_and_to_tensors(rows: Path, tmp_path: Path) -> None:
    made = expected(torch.from_numpy(np.load(rows)), 4)
    common = ("run", MLP, rows, "--micro-batch", 4)
    status, output = pipepar(*common, tmp_path / "o.jsonl", "--postprocess", HERE + "as_json")
    assert status == 0, output
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == functions.as_json(made)
    target = tmp_path / "o.safetensors"
    status, output = pipepar(*common, target, "--postprocess", HERE + "two_tensors")
    assert status == 0, output
    found, wanted = load_file(target), functions.two_tensors(made)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("option", "name", "suffix", "message"),
    [
        (
            "pre",
            "tests.helpers.functions",
            "npy",
            "expected package.module:name of a function that makes",
        ),
        ("pre", "no.such:thing", "npy", "no module 'no'"),
        ("pre", HERE + "gone", "npy", "no 'gone' in module"),
        ("post", HERE + "gone", "npy", "no 'gone' in module"),
        ("post", HERE + "not_callable", "npy", "is a int, expected a function that makes rows"),
        (
            "pre",
            HERE + "a_list",
            "npy",
            "--preprocess tests.helpers.functions:a_list returned a list;",
        ),
        ("pre", HERE + "one_row", "npy", "returned shape (4,) as value 0 for 2 samples"),
        (
            "post",
            HERE + "number",
            "npy",
            "--postprocess tests.helpers.functions:number returned a int;",
        ),
        ("post", HERE + "as_json", "npy", "holds arrays; found a list of dict, one per sample"),
        ("post", HERE + "no_json", "jsonl", "sample 0 is a Tensor that JSON cannot represent"),
        ("post", HERE + "one_row", "npy", "has shape (4,); expected 11 rows"),
    ],
)
def test_invalid_functions_and_results_are_refused(
    rows: Path, tmp_path: Path, option: str, name: str, suffix: str, message: str
) -> None:
    target = tmp_path / f"o.{suffix}"
    status, output = pipepar("run", MLP, rows, target, f"--{option}process", name)
    assert status == 1
    assert message in output
    assert "Traceback" not in output
    assert not target.exists()


@pytest.mark.parametrize("option", ["pre", "post"])
def test_a_function_that_fails_names_the_samples(tmp_path: Path, option: str) -> None:
    np.save(tmp_path / "in.npy", np.arange(10, dtype=np.float32)[:, None])
    status, output = pipepar(
        *("run", "tests.helpers.functions:identity", tmp_path / "in.npy", tmp_path / "o.npy"),
        *("--micro-batch", 2, f"--{option}process", HERE + "fails_at_6"),
    )
    assert status == 1
    name = f"--{option}process tests.helpers.functions:fails_at_6"
    assert f"{name} failed on samples 6, 7: KeyError: 'six'" in output
    assert "in fails_at_6" in output  # the traceback leads to the user's own line
    assert not (tmp_path / "o.npy").exists()


def test_a_factorys_model_is_released_before_the_work(rows: Path, tmp_path: Path) -> None:
    options = ["--postprocess", "tests.helpers.functions:requires_release"]
    status, output = pipepar(
        "run", "tests.helpers.functions:tracked", rows, tmp_path / "o.npy", *options
    )
    assert status == 0, output
