"""What `pipepar plan` is asked for: what goes together, and what it may write."""

import json
import os
from pathlib import Path

import pytest

from pipepar.plan.plan import Plan
from tests.helpers.command import MLP, pipepar
from tests.helpers.folders import text_folder

SHAPE = ("--shape", "2x4")


def refused(*arguments: object) -> str:
    status, output = pipepar("plan", *arguments)
    assert status == 1, output
    assert "Traceback" not in output
    return output


def test_samples_that_a_function_prepares(tmp_path: Path) -> None:
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


def test_a_function_without_samples() -> None:
    output = refused(MLP, "--stages", 2, *SHAPE, "--preprocess", "tests.helpers.functions:lengths")
    assert "found --preprocess tests.helpers.functions:lengths without --input" in output


def test_either_shapes_or_an_input(rows: Path) -> None:
    output = refused(MLP, "--stages", 2, *SHAPE, "--input", rows)
    assert f"found --input {rows} and --shape 2x4, expected one of them" in output


def test_a_task_that_nobody_knows() -> None:
    output = refused(MLP, "--stages", 2, *SHAPE, "--task", "embed")
    assert "found task 'embed', expected one of feature-extraction" in output


@pytest.mark.parametrize(
    ("place", "message"),
    [("no/plan.json", "does not exist"), (".", "is a directory, expected a file")],
)
def test_a_place_for_the_plan_is_checked_first(tmp_path: Path, place: str, message: str) -> None:
    # The model that is named here does not exist: it was not looked for.
    output = refused("nowhere:make", "--stages", 2, *SHAPE, "-o", tmp_path / place)
    assert f"--output {tmp_path / place}" in output
    assert message in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    output = refused("nowhere:make", "--stages", 2, *SHAPE, "-o", tmp_path / "plan.json")
    assert "may not write to" in output


def test_a_plan_replaces_nothing_that_is_read(tmp_path: Path) -> None:
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
        assert f"--output {written} would replace" in output
        assert written.read_bytes() == before


def test_a_plan_may_replace_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for stages in (2, 3):
        status, output = pipepar("plan", MLP, *SHAPE, "--stages", stages, "-o", path)
        assert status == 0, output
        assert len(Plan.from_json(path.read_text()).stages) == stages
    assert os.listdir(tmp_path) == ["plan.json"]
    assert json.loads(path.read_text())
