"""Tasks are files of a package, and are found by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipepar.errors import InputError
from pipepar.tasks import catalog
from pipepar.tasks.registry import find_task, task_names, task_summaries
from tests.helpers import factories
from tests.helpers.jobs.command import MLP, command, pipepar
from tests.helpers.one_more_file import one_more_file


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="found task 'dreaming', expected one of feature-extract"):
        find_task("dreaming")


@pytest.mark.parametrize("name", task_names())
def test_every_file_defines_a_task(name: str) -> None:
    assert find_task(name).head.auto_class is None or find_task(name).head.wrapper is not None


def test_every_task_has_a_summary() -> None:
    assert list(task_summaries()) == task_names()
    assert all(line.endswith(".") for line in task_summaries().values())


def test_a_task_is_one_file(rows: Path, tmp_path: Path) -> None:
    target, options = tmp_path / "o.jsonl", ("--task", "question-answering")
    status, output = pipepar("run", MLP, rows, target, *options)
    assert status == 1
    assert "found task 'question-answering', expected one of" in output
    with one_more_file(catalog, "question_answering.py", tmp_path / "more"):
        status, output = pipepar("run", MLP, rows, target, *options)
        assert status == 0, output
        _, page = command("run", "--help")
    with torch.no_grad():
        positions = factories.mlp()(torch.from_numpy(np.load(rows))).argmax(-1).tolist()
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert found == [{"answer": position} for position in positions]
    words = " ".join(page.replace("│", " ").split())
    assert "question-answering: the index of a sample's largest value." in words
