"""The options of `pipepar plan`: effects, combinations, and files that it may write."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from pipepar.plan.plan import Plan
from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import MLP, pipepar

pytestmark = pytest.mark.long(20)

SHAPE = ("--shape", "2x4")


def refused(*arguments: object) -> str:
    status, output = pipepar("plan", *arguments)
    assert status == 1, output
    assert "Traceback" not in output
    return output


def test_preprocess(tmp_path: Path) -> None:
    texts = tmp_path / "in.txt"
    texts.write_text("a quick fox\nover\n")
    preprocess = ("--preprocess", "tests.helpers.functions:lengths")
    plan, result = tmp_path / "plan.json", tmp_path / "out.npy"
    status, output = pipepar(
        *("plan", MLP, "--stages", 1, "--input", texts, *preprocess, "-o", plan)
    )
    assert status == 0, output
    status, output = pipepar("run", MLP, texts, result, *preprocess, "--plan", plan)
    assert status == 0, output


def test_preprocess_needs_an_input() -> None:
    output = refused(MLP, "--stages", 2, *SHAPE, "--preprocess", "tests.helpers.functions:lengths")
    assert "found --preprocess tests.helpers.functions:lengths without --input" in output


def test_shape_and_input_are_exclusive(rows: Path) -> None:
    output = refused(MLP, "--stages", 2, *SHAPE, "--input", rows)
    assert f"found --input {rows} and --shape 2x4, expected one of them" in output


def test_an_unknown_task() -> None:
    output = refused(MLP, "--stages", 2, *SHAPE, "--task", "embed")
    assert "found task 'embed', expected one of feature-extraction" in output


@pytest.mark.parametrize(
    ("path", "message"),
    [("no/plan.json", "does not exist"), (".", "is a directory, expected a file")],
)
def test_the_path_of_the_plan_is_checked_first(tmp_path: Path, path: str, message: str) -> None:
    # The model does not exist, so the error shows that the path is checked before the model.
    output = refused("nowhere:make", "--stages", 2, *SHAPE, "-o", tmp_path / path)
    assert f"--output {tmp_path / path}" in output
    assert message in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    output = refused("nowhere:make", "--stages", 2, *SHAPE, "-o", tmp_path / "plan.json")
    assert "may not write to" in output


def test_a_plan_does_not_overwrite_an_input(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertModel")
    texts = tmp_path / "in.txt"
    texts.write_text("the fox\n")
    (tmp_path / "m.pt2").write_bytes(b"program")
    for model, written in [
        (folder, folder / "config.json"),
        (folder, texts),
        (tmp_path / "m.pt2", tmp_path / "m.pt2"),
    ]:
        before = written.read_bytes()
        output = refused(model, "--stages", 2, "--input", texts, "-o", written)
        assert f"--output {written} would overwrite" in output
        assert written.read_bytes() == before


def test_a_plan_may_overwrite_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for stages in (2, 3):
        status, output = pipepar("plan", MLP, *SHAPE, "--stages", stages, "-o", path)
        assert status == 0, output
        assert len(Plan.from_json(path.read_text()).stages) == stages
    assert os.listdir(tmp_path) == ["plan.json"]
    assert json.loads(path.read_text())


def test_the_timeline_matches_the_printed_prediction(cluster: Path, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace.json", tmp_path / "plan.json"
    status, output = pipepar(
        *("plan", MLP, *SHAPE, "--cluster", cluster, "--micro-batch", 4, "--depth", 3),
        *("--trace", trace, "-o", path),
    )
    assert status == 0, output
    assert output.endswith(f"wrote {path} wrote {trace}")
    printed = re.search(r"64 micro-batches of 4, depth 3: ([\d.]+) ms \(bound", output)
    assert printed is not None, output
    events = [each for each in json.loads(trace.read_text())["traceEvents"] if each["ph"] == "X"]
    # A prediction has no spans of the sink.
    assert max(each["ts"] + each["dur"] for each in events) / 1e3 == pytest.approx(
        float(printed[1]), abs=0.06
    )
    for kind in ("compute", "send", "receive"):
        stage = {"compute": 0, "send": 0, "receive": 1}[kind]
        names = [each["name"] for each in events if (each["cat"], each["tid"]) == (kind, stage)]
        assert names == [f"{kind} {number}" for number in range(64)], kind


@pytest.mark.parametrize(("option", "depth"), [((), 2), (("--depth", 1), 1), (("--depth", 5), 5)])
def test_depth(option: tuple[object, ...], depth: int, cluster: Path) -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--cluster", cluster, *option)
    assert status == 0, output
    assert f"micro-batches of 32, depth {depth}: " in output


@pytest.mark.parametrize(("dtype", "size"), [("auto", 320), ("float32", 320), ("bfloat16", 160)])
def test_dtype(dtype: str, size: int) -> None:
    shape = f"2x4:{'bfloat16' if dtype == 'bfloat16' else 'float32'}"
    status, output = pipepar("plan", MLP, "--stages", 1, "--shape", shape, "--dtype", dtype)
    assert status == 0, output
    assert f" 0 0-3 {size} B 100% " in output


def test_shape_of_named_arguments(tmp_path: Path) -> None:
    two, path = "tests.helpers.factories:two", tmp_path / "plan.json"
    shapes = ("--shape", "x=3x4", "--shape", "y=3x4")
    status, output = pipepar("plan", two, "--stages", 1, *shapes, "-o", path)
    assert status == 0, output
    np.savez(tmp_path / "in.npz", x=np.ones((3, 4), np.float32), y=np.ones((3, 4), np.float32))
    job = ("run", two, tmp_path / "in.npz", tmp_path / "o.safetensors", "--plan", path)
    status, output = pipepar(*job)
    assert status == 0, output


def test_task(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertForSequenceClassification", num_labels=3)
    plans = []
    for task in ("text-classification", "feature-extraction"):
        path = tmp_path / f"{task}.json"
        status, output = pipepar("plan", folder, "--stages", 1, "--task", task, "-o", path)
        assert status == 0, output
        plans.append(Plan.from_json(path.read_text()))
    assert plans[0].stages[0].weight_bytes > plans[1].stages[0].weight_bytes
