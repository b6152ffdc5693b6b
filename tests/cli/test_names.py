"""Names with brackets, which rich could interpret as markup, are printed unchanged."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.jobs.command import MLP, command, pipepar

PICKY = "tests.helpers.factories:picky_first"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("[in].npy", np.array([[1.0] * 4, [1000.0] * 4], np.float32))


def test_names_in_the_output_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("[cache]").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "[cache]"))
    status, output = command("run", MLP, "[in].npy", "[bold].npy")
    assert status == 0, output
    assert "note: measured times cannot be cached in " in output
    assert "/[cache]/pipepar: " in "".join(output.split()).replace(":", ": ")
    assert output.endswith("wrote [bold].npy")


def test_names_in_the_report_of_failed_samples() -> None:
    status, output = pipepar("run", PICKY, "[in].npy", "[red].npy", "--on-error", "skip")
    assert status == 0, output
    assert "left out 1 failed sample, listed in [red].npy.errors.jsonl" in output
    assert output.endswith("wrote [red].npy")


def test_names_of_models_and_inputs_in_errors() -> None:
    status, output = pipepar("run", "[model].pt2", "[in].npy", "[red].npy")
    assert status == 1
    assert "pipepar: [model].pt2 on 1 rank, 1 host" in output
    assert "error: " in output.partition("failed")[2]
    assert "[model].pt2" in output.partition("failed")[2]
    status, output = pipepar("run", MLP, "[gone].npy", "[red].npy")
    assert status == 1
    assert "[gone].npy" in output


def test_names_in_the_output_of_a_plan() -> None:
    status, output = pipepar("plan", MLP, "--stages", 2, "--input", "[in].npy", "-o", "[a].json")
    assert status == 0, output
    assert output.endswith("wrote [a].json")
    status, output = pipepar("plan", MLP, "--stages", 2, "--input", "[gone].npy")
    assert status == 1
    assert "[gone].npy" in output
