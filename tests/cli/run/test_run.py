"""`pipepar run` in one process: inputs, outputs and failures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import factories
from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import MLP, pipepar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return text_folder(tmp_path / "bert", "BertModel")


def embeddings(folder: Path, texts: list[str], size: int) -> torch.Tensor:
    """Return the embeddings of sentence-transformers, on the same micro-batches as pipepar."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = sorted(range(len(texts)), key=lambda i: -len(tokenizer(texts[i])["input_ids"]))
    result = torch.empty(len(texts), 16)
    for begin in range(0, len(texts), size):
        some = order[begin : begin + size]
        batch = tokenizer([texts[i] for i in some], padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        result[some] = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return result


def test_text_with_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    texts = [
        "the fox",
        "a lazy dog jumps over the quick fox",
        "dog",
        "unknown words here",
        "fox " * 9,
    ]
    source = tmp_path / "in.txt"
    source.write_text("\n".join(texts) + "\n")
    status, output = pipepar("run", folder, source, tmp_path / "out.npy", "--micro-batch", 2)
    assert status == 0, output
    found = torch.from_numpy(np.load(tmp_path / "out.npy"))
    assert torch.equal(found, embeddings(folder, texts, 2))
    assert "5 samples in" in output
    assert "perfect pipeline" in output
    assert "busiest: stage 0" in output
    assert "idle: fill 0% · imbalance 0% · transfer 0% · source" in output


def test_jsonl_in_and_out(folder: Path, tmp_path: Path) -> None:
    texts = ["the quick fox", "dog"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    status, output = pipepar("run", folder, source, tmp_path / "out.jsonl", "--micro-batch", 1)
    assert status == 0, output
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = torch.tensor([line["output"] for line in lines])
    assert torch.equal(found, embeddings(folder, texts, 1))


def test_arrays_with_a_factory(rows: Path, tmp_path: Path) -> None:
    status, output = pipepar("run", "tests.helpers.factories:mlp", rows, tmp_path / "o.safetensors")
    assert status == 0, output
    with torch.no_grad():
        expected = factories.mlp()(torch.from_numpy(np.load(rows)))
    assert torch.equal(load_file(tmp_path / "o.safetensors")["output"], expected)


def test_named_arrays_named_outputs_and_weights_from_a_file(tmp_path: Path) -> None:
    model = factories.two()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    weights, source = tmp_path / "w.safetensors", tmp_path / "in.safetensors"
    save_file(model.state_dict(), weights)
    inputs = {"x": torch.randn(7, 4), "y": torch.randn(7, 4)}
    save_file(inputs, source)
    status, output = pipepar(
        "run",
        "tests.helpers.factories:two",
        source,
        tmp_path / "o.safetensors",
        "--weights",
        weights,
    )
    assert status == 0, output
    found = load_file(tmp_path / "o.safetensors")
    with torch.no_grad():
        expected = model(**inputs)
    assert set(found) == {"hidden", "logits"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
def test_an_empty_input_gives_an_empty_output(tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "in.npy", np.empty((0, 4), np.float32))
    output_path = tmp_path / f"out{suffix}"
    status, output = pipepar("run", "tests.helpers.factories:mlp", tmp_path / "in.npy", output_path)
    assert status == 0, output
    assert output_path.exists()
    if suffix == ".npy":
        assert len(np.load(output_path)) == 0


def test_nan_is_passed_through(tmp_path: Path) -> None:
    values = np.ones((3, 4), np.float32)
    values[1] = np.nan
    np.save(tmp_path / "in.npy", values)
    status, output = pipepar(
        "run", "tests.helpers.factories:mlp", tmp_path / "in.npy", tmp_path / "o.npy"
    )
    assert status == 0, output
    assert np.isnan(np.load(tmp_path / "o.npy")).all(1).tolist() == [False, True, False]


def test_a_run_with_a_plan(rows: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out.npy"
    factory = "tests.helpers.factories:mlp"
    status, output = pipepar("plan", factory, "--stages", 1, "--input", rows, "-o", plan)
    assert status == 0, output
    assert " 0 0-3 320 B 100% " in output
    status, output = pipepar("run", factory, rows, out, "--plan", plan)
    assert status == 0, output


def test_the_timeline_of_a_run(rows: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    status, output = pipepar(
        *("run", "tests.helpers.factories:mlp", rows, tmp_path / "o.npy"),
        *("--micro-batch", 5, "--trace", trace),
    )
    assert status == 0, output
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event["name"] for event in events if event["cat"] == "compute"] == [
        "compute 0",
        "compute 1",
        "compute 2",
    ]
    # In microseconds since the work began.
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["ph"] == "X"]
    assert min(spans)[0] >= 0
    assert max(end for _, end in spans) < 60e6
    assert sorted(spans) == spans


def test_a_stage_that_fails_leaves_no_output(rows: Path, tmp_path: Path) -> None:
    status, output = pipepar(
        *(
            "run",
            "tests.helpers.factories:raises_last",
            rows,
            tmp_path / "o.npy",
            "--micro-batch",
            2,
        )
    )
    assert status == 1
    assert "stage 0 failed on micro-batch 4, samples 8, 9: ValueError: sprung" in output
    assert "in _raise" in output  # the traceback leads to the user's own line
    assert not (tmp_path / "o.npy").exists()
    assert (tmp_path / ".o.npy.journal").exists()  # tests/jobs/test_resume.py resumes it


def test_a_job_that_fails_before_any_result_leaves_nothing(rows: Path, tmp_path: Path) -> None:
    status, output = pipepar(
        *("run", MLP, rows, tmp_path / "o.npy", "--postprocess", "tests.helpers.functions:nothing")
    )
    assert status == 1, output
    assert not list(tmp_path.glob("*o.npy*"))


def test_a_plan_needs_no_weights(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    make = factories.mlp

    def mlp() -> torch.nn.Module:
        model = make()
        seen.extend(parameter.is_meta for parameter in model.parameters())
        return model

    monkeypatch.setattr(factories, "mlp", mlp)
    status, output = pipepar("plan", MLP, "--stages", 2, "--input", rows)
    assert status == 0, output
    assert seen
    assert all(seen)


@pytest.mark.parametrize("verb", [[], ["run"], ["plan"]])
def test_help_has_an_example_with_mpirun(verb: list[str]) -> None:
    status, output = pipepar(*verb, "--help")
    assert status == 0
    assert "mpirun -n" in output
