"""Who is told of the end of a run is told of --resume, once, where that run has left something."""

from pathlib import Path

import numpy as np
import pytest

from pipepar.data.writers.unfinished import is_unfinished
from tests.helpers.jobs.command import MLP, pipepar

TRAP = "tests.helpers.factories:raises_last"
REMEDY = "finished samples are saved: run again with --resume"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((40, 4), np.float32))
    return path


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_an_exception_after_some_micro_batches(
    options: tuple[str, ...], rows: Path, tmp_path: Path
) -> None:
    status, said = pipepar("run", TRAP, rows, tmp_path / "out.npy", "--micro-batch", 2, *options)
    assert status == 1
    assert "ValueError: sprung" in said
    assert said.endswith(REMEDY)
    assert said.count(REMEDY) == 1


def test_the_output_is_a_link(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "there" / "out.npy")
    status, said = pipepar("run", TRAP, rows, tmp_path / "out.npy", "--micro-batch", 2)
    assert status == 1
    assert said.endswith(REMEDY)


def test_an_exception_before_anything_was_written(rows: Path, tmp_path: Path) -> None:
    function = ("--postprocess", "tests.helpers.functions:number")
    status, said = pipepar("run", MLP, rows, tmp_path / "out.jsonl", *function)
    assert status == 1
    assert "--postprocess" in said
    assert "--resume" not in said


def test_what_is_left_is_of_another_run(rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    pipepar("run", TRAP, rows, output, "--micro-batch", 2)
    assert is_unfinished(output)
    status, said = pipepar("run", "tests.helpers.factories:missing", rows, output)
    assert status == 1
    assert REMEDY not in said
    status, said = pipepar("run", MLP, rows, output, "--resume")
    assert status == 1
    assert "belongs to another job" in said
    assert said.count("--resume") == 2  # the error's own words
