"""The report of `pipepar run` on the plan that it chose from measured times."""

import re
from pathlib import Path

import pytest

from pipepar.jobs import run as job
from tests.helpers.jobs.command import MLP, command, pipepar


def test_a_run_reports_its_choice_and_prediction(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "advice", lambda choice, devices: f"{len(devices)} would do")
    result = str(tmp_path / "out.npy")
    status, output = command("run", MLP, str(rows), result)
    assert status == 0, output
    found = re.search(
        r"note: micro-batches of (\d+), depth 2, predicted ([\d,.]+) samples/s; "
        r"--micro-batch (\d+) repeats it bit for bit note: 1 would do ",
        output,
    )
    assert found is not None, output
    assert found[1] == found[3]
    assert f" samples/s (predicted {found[2]}) · " in output
    # One rank with a given micro-batch has nothing to choose, and measures nothing.
    status, output = command("run", MLP, str(rows), result, "--micro-batch", "4")
    assert status == 0, output
    assert "predicted" not in output


def test_a_run_with_a_plan_makes_no_prediction(rows: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    pipepar("plan", MLP, "--input", rows, "--stages", 1, "-o", plan)
    status, output = command("run", MLP, str(rows), str(tmp_path / "o.npy"), "--plan", str(plan))
    assert status == 0, output
    assert "predicted" not in output
