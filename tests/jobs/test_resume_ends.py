"""Jobs on an output that is finished, nearly finished, or another run's."""

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
from tests.helpers.jobs.in_process import go_on, hidden, run


@pytest.fixture
def job(rows: Path, tmp_path: Path) -> Job:
    return Job(MLP, rows, tmp_path / "out.npy", micro_batch=2)


def notes(job: Job) -> list[str]:
    shown = list[str]()
    run_job(World.start(), job, replace(NO_DISPLAY, note=shown.append))
    return shown


def run_but_for_the_journal(job: Job) -> None:
    """As if it were killed just before the journal goes."""
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
def test_all_was_done_but_the_journals_end(job: Job, suffix: str) -> None:
    job = replace(job, output=job.output.with_suffix(suffix))
    run_but_for_the_journal(job)
    found, inode = job.output.read_bytes(), job.output.stat().st_ino
    assert go_on(job).samples == 0
    assert job.output.read_bytes() == found
    assert hidden(job.output.parent) == []
    if suffix != ".jsonl":
        assert job.output.stat().st_ino == inode


@pytest.mark.parametrize("micro_batch", [32, 11, None])
@pytest.mark.parametrize("planned", [False, True])
def test_a_micro_batch_larger_than_the_input(
    job: Job, micro_batch: int | None, planned: bool
) -> None:
    """It counts as many samples as there are, so that the job may be resumed."""
    if planned:
        plan = job.output.with_name("plan.json")
        status, output = pipepar("plan", MLP, "--stages", 1, "--input", job.input, "-o", plan)
        assert status == 0, output
        job = replace(job, plan=plan)
    run_but_for_the_journal(replace(job, micro_batch=32))
    assert run(replace(job, resume=True, micro_batch=micro_batch)).samples == 0
    assert hidden(job.output.parent) == []


def test_samples_that_failed_are_told_again(job: Job) -> None:
    values = np.ones((11, 4), np.float32)
    values[[3, 8]] = 1e6
    np.save(job.input, values)
    job = replace(job, model="tests.helpers.factories:picky_last", on_error="skip")
    run_but_for_the_journal(job)
    found, told = job.output.read_bytes(), errors_of(job.output).read_text()
    errors_of(job.output).unlink()
    summary = go_on(job)
    assert (summary.samples, summary.failed) == (0, 2)
    assert (job.output.read_bytes(), errors_of(job.output).read_text()) == (found, told)
    assert hidden(job.output.parent) == []


def test_another_job_is_refused_there_too(job: Job) -> None:
    run_but_for_the_journal(job)
    found = job.output.read_bytes()
    with pytest.raises(InputError, match="belongs to another job: model"):
        go_on(replace(job, model="tests.helpers.factories:one_layer"))
    assert job.output.read_bytes() == found
    assert hidden(job.output.parent) == [".out.npy.journal"]


def test_another_file_has_the_name(job: Job) -> None:
    run_but_for_the_journal(job)
    found = job.output.read_bytes()
    np.save(job.output, np.ones((11, 4), np.float32))
    assert go_on(job).samples == 11
    assert job.output.read_bytes() == found


def test_a_finished_output_is_made_anew(job: Job) -> None:
    run(job)
    told = f"output {job.output} is finished, so there is nothing to resume; it is replaced"
    assert told in notes(replace(job, resume=True))


def test_nothing_is_left(job: Job) -> None:
    told = f"output {job.output} has nothing to resume; starting from the beginning"
    assert told in notes(replace(job, resume=True))


@pytest.mark.parametrize("resume", [True, False])
def test_the_second_of_two_runs_is_told_at_once(job: Job, resume: bool) -> None:
    """Before its model is looked at, and nothing of what an earlier run left."""
    run(job, 3)
    other, shown = Partial(job.output), list[str]()
    second = replace(job, model="tests.helpers.factories:missing", resume=resume)
    with pytest.raises(InputError, match="is being written by another run"):
        run_job(World.start(), second, replace(NO_DISPLAY, note=shown.append))
    assert not shown
    other.keep()
    assert go_on(job).samples == 5


@pytest.mark.parametrize("resume", [True, False])
def test_a_job_that_fails_early_leaves_all_as_it_was(job: Job, resume: bool) -> None:
    with pytest.raises(PipeparError, match="missing"):
        run(replace(job, model="tests.helpers.factories:missing", resume=resume))
    assert hidden(job.output.parent) == []
    run(job, 3)
    with pytest.raises(PipeparError, match="missing"):
        run(replace(job, model="tests.helpers.factories:missing", resume=resume))
    assert go_on(job).samples == 5


def test_looking_at_what_is_left_is_no_stall(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job, 4)
    steps = list[str]()

    def reads(file: FileIO, offset: int, size: int) -> bytes:
        steps.append("read")
        return read_at(file, offset, size)

    monkeypatch.setattr("pipepar.data.writers.unfinished.read_at", reads)
    monkeypatch.setattr(Heartbeat, "tell", lambda *_: steps.append("tell"))
    go_on(job)
    first = steps.index("read")
    assert steps[first : first + 8] == ["read", "tell"] * 4
