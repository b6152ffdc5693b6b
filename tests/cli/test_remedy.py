"""The last error message of a run names --resume, once, if the run has left partial results."""

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
    status, out = pipepar("run", TRAP, rows, tmp_path / "out.npy", "--micro-batch", 2, *options)
    assert status == 1
    assert "ValueError: sprung" in out
    assert out.endswith(REMEDY)
    assert out.count(REMEDY) == 1


def test_the_output_is_a_link(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "there" / "out.npy")
    status, out = pipepar("run", TRAP, rows, tmp_path / "out.npy", "--micro-batch", 2)
    assert status == 1
    assert out.endswith(REMEDY)


def test_an_exception_before_anything_was_written(rows: Path, tmp_path: Path) -> None:
    function = ("--postprocess", "tests.helpers.functions:number")
    status, out = pipepar("run", MLP, rows, tmp_path / "out.jsonl", *function)
    assert status == 1
    assert "--postprocess" in out
    assert "--resume" not in out


def test_partial_results_of_another_run(rows: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.npy"
    pipepar("run", TRAP, rows, target, "--micro-batch", 2)
    assert is_unfinished(target)
    status, out = pipepar("run", "tests.helpers.factories:missing", rows, target)
    assert status == 1
    assert REMEDY not in out
    status, out = pipepar("run", MLP, rows, target, "--resume")
    assert status == 1
    assert "belongs to another job" in out
    assert out.count("--resume") == 2  # the error's own words
