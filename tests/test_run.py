"""The command line in one process: the main job, and every input that cannot work."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipepar.cli.app import app
from tests import factories


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # In one process MPI is not needed; a test that ran before may have imported it.
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    torch.set_num_threads(1)


def pipepar(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((11, 4), dtype=np.float32))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of two small layers and a tokenizer of a few words, as save_pretrained leaves them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *"the quick brown fox jumps over a lazy dog".split()]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    path = tmp_path / "bert"
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def embeddings(folder: Path, texts: list[str], size: int) -> torch.Tensor:
    """What sentence-transformers would compute, on the micro-batches that pipepar makes."""
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


def test_text_through_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
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


def test_jsonl_in_and_out(folder: Path, tmp_path: Path) -> None:
    texts = ["the quick fox", "dog"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    status, output = pipepar("run", folder, source, tmp_path / "out.jsonl", "--micro-batch", 1)
    assert status == 0, output
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = torch.tensor([line["output"] for line in lines])
    assert torch.equal(found, embeddings(folder, texts, 1))


def test_arrays_through_a_factory(rows: Path, tmp_path: Path) -> None:
    status, output = pipepar("run", "tests.factories:mlp", rows, tmp_path / "o.safetensors")
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
        "run", "tests.factories:two", source, tmp_path / "o.safetensors", "--weights", weights
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
    status, output = pipepar("run", "tests.factories:mlp", tmp_path / "in.npy", output_path)
    assert status == 0, output
    assert output_path.exists()
    if suffix == ".npy":
        assert len(np.load(output_path)) == 0


def test_nan_in_nan_out(tmp_path: Path) -> None:
    values = np.ones((3, 4), np.float32)
    values[1] = np.nan
    np.save(tmp_path / "in.npy", values)
    status, output = pipepar("run", "tests.factories:mlp", tmp_path / "in.npy", tmp_path / "o.npy")
    assert status == 0, output
    assert np.isnan(np.load(tmp_path / "o.npy")).all(1).tolist() == [False, True, False]


def test_a_plan_made_first_is_used(rows: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out.npy"
    factory = "tests.factories:mlp"
    status, output = pipepar("plan", factory, "--stages", 1, "--input", rows, "-o", plan)
    assert status == 0, output
    assert "the input" in output
    status, output = pipepar("run", factory, rows, out, "--plan", plan)
    assert status == 0, output
    status, output = pipepar("plan", factory, "--stages", 2, "--input", rows, "-o", plan)
    assert status == 0, output
    status, output = pipepar("run", factory, rows, out, "--plan", plan)
    assert status == 1
    assert "the plan has 2 stages, the job has 1 ranks; start it with mpirun -n 2" in output


def test_a_timeline(rows: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    status, output = pipepar(
        *("run", "tests.factories:mlp", rows, tmp_path / "o.npy"),
        *("--micro-batch", 5, "--trace", trace),
    )
    assert status == 0, output
    events = json.loads(trace.read_text())["traceEvents"]
    assert [event["name"] for event in events if event["cat"] == "compute"] == [
        "compute 0",
        "compute 1",
        "compute 2",
    ]


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


Case = tuple[str, Callable[[Path, Path], list[Any]], str]
MLP = "tests.factories:mlp"
CASES: list[Case] = [
    ("no model", lambda t, r: [t / "nowhere", _file(t), t / "o.npy"], "no config.json"),
    ("no module", lambda t, r: ["no.such:model", r, t / "o.npy"], "no module 'no'"),
    ("no factory", lambda t, r: ["tests.factories:gone", r, t / "o.npy"], "no 'gone' in module"),
    (
        "no nn.Module",
        lambda t, r: ["tests.factories:no_module", r, t / "o.npy"],
        "returned a int, expected an nn.Module",
    ),
    ("no input", lambda t, r: [MLP, t / "gone.npy", t / "o.npy"], "gone.npy"),
    ("input suffix", lambda t, r: [MLP, t / "in.csv", t / "o.npy"], "in.csv"),
    ("text without tokenizer", lambda t, r: [MLP, _file(t), t / "o.npy"], "brings no tokenizer"),
    ("output suffix", lambda t, r: [MLP, r, t / "o.csv"], "'.csv'"),
    ("output folder", lambda t, r: [MLP, r, t / "no" / "o.npy"], "does not exist"),
    ("output is a folder", lambda t, r: [MLP, r, t], "o"),
    (
        "two outputs in .npy",
        lambda t, r: ["tests.factories:two", _two(t), t / "o.npy"],
        "returns 2 tensors (hidden, logits), a .npy file holds one",
    ),
    (
        "input does not match",
        lambda t, r: ["tests.factories:two", r, t / "o.safetensors"],
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
    ("output is the input", lambda t, r: [MLP, r, r], "which it would replace"),
    ("trace folder", lambda t, r: [MLP, r, t / "o.npy", "--trace", t / "no" / "t"], "no folder"),
]


def _two(tmp: Path) -> Path:
    np.savez(tmp / "two.npz", x=np.ones((2, 4), np.float32), y=np.ones((2, 4), np.float32))
    return tmp / "two.npz"


@pytest.mark.parametrize(("name", "arguments", "message"), CASES, ids=[case[0] for case in CASES])
def test_what_cannot_work_is_refused_before_it_starts(
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


def test_a_stage_that_fails_leaves_no_output(rows: Path, tmp_path: Path) -> None:
    status, output = pipepar(
        *("run", "tests.factories:raises_last", rows, tmp_path / "o.npy", "--micro-batch", 2)
    )
    assert status == 1
    assert "stage 0 failed on micro-batch 4, samples 8, 9: ValueError: sprung" in output
    assert "in _raise" in output  # the traceback leads to the user's own line
    assert not list(tmp_path.glob("*o.npy*"))


def test_srun_without_mpi_is_noticed(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    status, output = pipepar("run", MLP, rows, tmp_path / "o.npy")
    assert status == 1
    assert "started 8 ranks" in output
    assert "srun --mpi=pmix" in output


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
def test_help_teaches(verb: list[str]) -> None:
    status, output = pipepar(*verb, "--help")
    assert status == 0
    assert "mpirun -n" in output
