"""Jobs on an output that is finished, nearly finished, or in use by another run."""

from __future__ import annotations

from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from pipepar.comm.liveness.heartbeat import Heartbeat
from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of
from pipepar.data.writers.partial import Partial, read_at
from pipepar.errors import InputError, PipeparError
from pipepar.jobs.output.quarantine import errors_of
from pipepar.jobs.run import Job, run_job
from pipepar.progress import NO_DISPLAY
from tests.helpers.jobs.command import MLP, pipepar
from tests.helpers.jobs.in_process import hidden_files, resume, run


@pytest.fixture
def job(rows: Path, tmp_path: Path) -> Job:
    return Job(MLP, rows, tmp_path / "out.npy", micro_batch=2)


def notes(job: Job) -> list[str]:
    shown = list[str]()
    run_job(World.start(), job, replace(NO_DISPLAY, note=shown.append))
    return shown


def run_but_keep_the_journal(job: Job) -> None:
    """Run a job as if it were killed just before it removes the journal."""
    unlink = Path.unlink

    def fails(path: Path, missing_ok: bool = False) -> None:
        if path == journal_of(job.output) and path.exists():
            raise OSError(5, "killed")
        unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        with pytest.raises(OSError, match="killed"):
            run(job)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
def test_resuming_after_the_rename(job: Job, suffix: str) -> None:
    job = replace(job, output=job.output.with_suffix(suffix))
    run_but_keep_the_journal(job)
    found, inode = job.output.read_bytes(), job.output.stat().st_ino
    assert resume(job).samples == 0
    assert job.output.read_bytes() == found
    assert hidden_files(job.output.parent) == []
    if suffix != ".jsonl":
        assert job.output.stat().st_ino == inode


@pytest.mark.parametrize("micro_batch", [32, 11, None])
@pytest.mark.parametrize("planned", [False, True])
def test_a_micro_batch_larger_than_the_input(
    job: Job, micro_batch: int | None, planned: bool
) -> None:
    """The journal stores at most the number of samples, so any larger size can resume."""
    if planned:
        plan = job.output.with_name("plan.json")
        status, output = pipepar("plan", MLP, "--stages", 1, "--input", job.input, "-o", plan)
        assert status == 0, output
        job = replace(job, plan=plan)
    run_but_keep_the_journal(replace(job, micro_batch=32))
    assert run(replace(job, resume=True, micro_batch=micro_batch)).samples == 0
    assert hidden_files(job.output.parent) == []


def test_errors_of_failed_samples_are_written_again(job: Job) -> None:
    values = np.ones((11, 4), np.float32)
    values[[3, 8]] = 1e6
    np.save(job.input, values)
    job = replace(job, model="tests.helpers.factories:picky_last", on_error="skip")
    run_but_keep_the_journal(job)
    found, expected = job.output.read_bytes(), errors_of(job.output).read_text()
    errors_of(job.output).unlink()
    summary = resume(job)
    assert (summary.samples, summary.failed) == (0, 2)
    assert (job.output.read_bytes(), errors_of(job.output).read_text()) == (found, expected)
    assert hidden_files(job.output.parent) == []


def test_another_job_is_refused_after_the_rename(job: Job) -> None:
    run_but_keep_the_journal(job)
    found = job.output.read_bytes()
    with pytest.raises(InputError, match="belongs to another job: model"):
        resume(replace(job, model="tests.helpers.factories:one_layer"))
    assert job.output.read_bytes() == found
    assert hidden_files(job.output.parent) == [".out.npy.journal"]


def test_another_file_with_the_final_name_is_replaced(job: Job) -> None:
    run_but_keep_the_journal(job)
    found = job.output.read_bytes()
    np.save(job.output, np.ones((11, 4), np.float32))
    assert resume(job).samples == 11
    assert job.output.read_bytes() == found


def test_a_finished_output_is_replaced(job: Job) -> None:
    run(job)
    expected = f"output {job.output} is finished, so there is nothing to resume; it is replaced"
    assert expected in notes(replace(job, resume=True))


def test_resuming_without_an_output(job: Job) -> None:
    expected = f"output {job.output} has nothing to resume; starting from the beginning"
    assert expected in notes(replace(job, resume=True))


@pytest.mark.parametrize("option", [True, False])
def test_the_second_of_two_runs_is_refused_immediately(job: Job, option: bool) -> None:
    """It is refused before its model is read, and the unfinished output is unchanged."""
    run(job, 3)
    other, shown = Partial(job.output), list[str]()
    second = replace(job, model="tests.helpers.factories:missing", resume=option)
    with pytest.raises(InputError, match="is being written by another run"):
        run_job(World.start(), second, replace(NO_DISPLAY, note=shown.append))
    assert not shown
    other.keep()
    assert resume(job).samples == 5


@pytest.mark.parametrize("option", [True, False])
def test_a_job_that_fails_early_keeps_the_unfinished_output(job: Job, option: bool) -> None:
    with pytest.raises(PipeparError, match="missing"):
        run(replace(job, model="tests.helpers.factories:missing", resume=option))
    assert hidden_files(job.output.parent) == []
    run(job, 3)
    with pytest.raises(PipeparError, match="missing"):
        run(replace(job, model="tests.helpers.factories:missing", resume=option))
    assert resume(job).samples == 5


def test_restoring_rows_sends_heartbeats(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job, 4)
    steps = list[str]()

    def reads(file: FileIO, offset: int, size: int) -> bytes:
        steps.append("read")
        return read_at(file, offset, size)

    monkeypatch.setattr("pipepar.data.writers.unfinished.read_at", reads)
    monkeypatch.setattr(Heartbeat, "set_activity", lambda *_: steps.append("tell"))
    resume(job)
    first = steps.index("read")
    assert steps[first : first + 8] == ["read", "tell"] * 4
