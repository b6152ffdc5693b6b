"""The effect of each option of `pipepar run`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.helpers import factories
from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import MLP, command, pipepar

pytestmark = pytest.mark.long(25)

TEXTS = ["the quick fox jumps over the lazy dog", "a dog", "the fox"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    (path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    return text_folder(path / "bert", "BertModel")


@pytest.mark.parametrize(
    ("options", "length"),
    [
        (("--max-length", 6), 6),
        (("--max-length", 12, "--padding", "longest"), 11),  # with [CLS] and [SEP]
        (("--max-length", 12, "--padding", "max_length"), 12),
        (("--padding", "max_length"), 16),  # the tokenizer's own limit
    ],
)
def test_max_length_and_padding(
    options: tuple[object, ...], length: int, folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    output = tmp_path / "o.npy"
    states = ("--task", "raw", "--postprocess", "tests.helpers.functions:states")
    status, words = pipepar("run", folder, folder.parent / "in.txt", output, *states, *options)
    assert status == 0, words
    found = torch.from_numpy(np.load(output))
    assert found.shape == (3, length, 16)
    model = AutoModel.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    seen = batch["attention_mask"].bool()
    assert torch.allclose(found[seen], expected[seen], atol=1e-5)


def test_depth(rows: Path, tmp_path: Path) -> None:
    for options, depth in (((), 2), (("--depth", "3"), 3)):
        status, words = command("run", MLP, str(rows), str(tmp_path / "o.npy"), *options)
        assert status == 0, words
        assert re.search(rf"note: micro-batches of \d+, depth {depth}, predicted", words), words


@pytest.mark.parametrize(("options", "size"), [((), 11), (("--micro-batch", "4"), 4)])
def test_micro_batch_overrides_the_plan(
    options: tuple[str, ...], size: int, rows: Path, tmp_path: Path
) -> None:
    plan, trace = tmp_path / "plan.json", tmp_path / "trace.json"
    status, words = pipepar("plan", MLP, "--stages", 1, "--input", rows, "-o", plan)
    assert status == 0, words
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"micro_batch": 11}))
    job = ("run", MLP, str(rows), str(tmp_path / "o.npy"), "--plan", str(plan), *options)
    status, words = command(*job, "--trace", str(trace))
    assert status == 0, words
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["cat"] == "compute" for event in events) == -(-11 // size)


def test_dtype(rows: Path, tmp_path: Path) -> None:
    for dtype in ("float16", "bfloat16", "float32"):
        output = tmp_path / "o.jsonl"
        status, words = pipepar("run", MLP, rows, output, "--dtype", dtype)
        assert status == 0, words
        x = torch.from_numpy(np.load(rows)).to(getattr(torch, dtype))
        with torch.no_grad():
            expected = factories.mlp().to(x.dtype)(x)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert torch.equal(torch.tensor([line["output"] for line in lines]), expected.float())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "words",
    [("run", MLP, "in.npy", "o.npy"), ("plan", MLP, "--shape", "2x4", "--stages", 2, "--profile")],
)
def test_device(words: tuple[object, ...], rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    rows.rename("in.npy")
    status, output = pipepar(*words, "--device", "cuda")
    assert status == 1
    assert "rank 0 on" in output
    assert "has no GPU to compute on" in output
    status, output = pipepar(*words, "--device", "cpu")
    assert status == 0, output


def test_weights_from(rows: Path, tmp_path: Path) -> None:
    program = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(factories.mlp(), (torch.zeros(11, 4),)), program)
    options = ("--micro-batch", 11)
    job = ("run", program, rows, tmp_path / "o.npy", *options)
    assert pipepar(*job, "--weights-from", "disk")[0] == 0
    status, words = pipepar(*job, "--weights-from", "root")
    assert status == 1
    assert "--weights-from root is not supported for" in words


def test_weights(rows: Path, tmp_path: Path) -> None:
    state = {name: torch.ones_like(value) for name, value in factories.mlp().state_dict().items()}
    save_file(state, tmp_path / "ones.safetensors")
    job = ("run", MLP, rows, tmp_path / "o.npy", "--weights", tmp_path / "ones.safetensors")
    status, words = pipepar(*job)
    assert status == 0, words
    found = np.load(tmp_path / "o.npy")
    assert (found == found[:, :1]).all()


def test_task(rows: Path, tmp_path: Path) -> None:
    def keys(*options: str) -> list[str]:
        job = ("run", "tests.helpers.functions:identity", rows, tmp_path / "o.jsonl", *options)
        status, words = pipepar(*job)
        assert status == 0, words
        line: dict[str, Any] = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
        return list(line)

    assert keys() == ["output"]
    assert keys("--task", "raw") == ["output"]
    assert keys("--task", "text-classification") == ["label", "score"]


@pytest.mark.parametrize(("options", "status"), [((), 1), (("--on-error", "skip"), 0)])
def test_on_error(options: tuple[str, ...], status: int, tmp_path: Path) -> None:
    values = np.ones((5, 4), np.float32)
    values[2] = 1000
    np.save(tmp_path / "in.npy", values)
    picky = "tests.helpers.factories:picky_first"
    found, words = pipepar("run", picky, tmp_path / "in.npy", tmp_path / "o.npy", *options)
    assert found == status, words
    assert ("left out 1 failed sample, listed in" in words) == (status == 0)
    assert ("ValueError: too much" in words) == (status == 1)


def test_preprocess_and_postprocess(rows: Path, tmp_path: Path) -> None:
    def found(*options: str) -> Any:
        job = ("run", "tests.helpers.functions:identity", rows, tmp_path / "o.npy", *options)
        status, words = pipepar(*job)
        assert status == 0, words
        return np.load(tmp_path / "o.npy")

    x = np.load(rows)
    assert np.array_equal(found("--preprocess", "tests.helpers.functions:doubled"), 2 * x)
    assert np.array_equal(found("--postprocess", "tests.helpers.functions:squared"), x * x)


def test_resume(rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.npy"
    job = ("run", "tests.helpers.factories:terminated", str(rows), str(output))
    assert command(*job, "--micro-batch", "2")[0] == 75
    status, words = command(*job, "--micro-batch", "2")
    assert status == 75, words
    assert "resuming" not in words
    status, words = command(*job, "--resume")
    assert status == 0, words
    assert "resuming: 6 of 11 samples" in words
