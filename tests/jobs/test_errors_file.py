"""The file with the errors of failed samples: complete, and in accordance with the output."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipepar.data.writers.journal import journal_of
from pipepar.jobs.output.quarantine import Quarantine, errors_of
from pipepar.jobs.run import Job
from pipepar.microbatch import Fault
from tests.helpers.jobs.disk import Disk
from tests.helpers.jobs.in_process import errors_in_file, resume, run

PICKY = "tests.helpers.factories:picky_last"
BAD = (3, 8)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a job in which two samples fail, with its output in a folder of its own."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save(tmp_path / "in" / "rows.npy", BAD)
    return Job(
        *(PICKY, tmp_path / "in" / "rows.npy", tmp_path / "out" / "y.npy"),
        micro_batch=2,
        on_error="skip",
    )


def save(path: Path, bad: tuple[int, ...]) -> None:
    values = np.ones((11, 4), np.float32)
    values[list(bad)] = 1e6
    np.save(path, values)


def test_content_of_a_line(job: Job) -> None:
    run(job)
    text = errors_of(job.output).read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"id": at, "stage": 0, "error": "ValueError: too much"} for at in BAD
    ]
    assert text.endswith("\n")


def test_lines_are_in_the_inputs_order(tmp_path: Path) -> None:
    """Texts may fail in another order, since the longest are computed first."""
    quarantine = Quarantine(tmp_path / "y.npy")
    for at in (7, 2, 5):
        quarantine.add([at], Fault("sink", f"{at} failed"))
    quarantine.write()
    lines = errors_of(tmp_path / "y.npy").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(quarantine) == [2, 5, 7]
    assert quarantine.first == "sample 2 in the sink: 2 failed"


@pytest.mark.parametrize(
    ("before", "bad"), [((), BAD), (BAD, ()), ((1, 2, 3), BAD)], ids=["none", "repaired", "others"]
)
def test_a_crash_at_any_moment(
    job: Job, before: tuple[int, ...], bad: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete output without a journal always has its own file of errors."""
    path, errors = job.output, errors_of(job.output)
    save(job.input, bad)
    run(job)
    output, lines = path.read_bytes(), errors.read_bytes() if bad else None
    save(job.input, before)
    run(job)
    assert path.read_bytes() != output
    save(job.input, bad)
    disk = Disk(path.parent)
    with monkeypatch.context() as patch:
        disk.watch(patch)
        run(job)
    states = [dict(state) for state in disk.states]
    finished = [each for each in states if each[path.name] == output]
    assert any(journal_of(path).name not in each for each in finished)
    for each in finished:
        if journal_of(path).name not in each:
            assert each.get(errors.name) == lines, f"samples {bad} after {before}: {sorted(each)}"


def test_failures_of_the_stopped_run_are_listed(job: Job) -> None:
    """The file lists the samples that failed before and after the job was stopped."""
    assert run(job, 9).stopped  # six micro-batches, and two of the four samples alone
    assert not errors_of(job.output).exists()
    summary = resume(job)
    assert summary.failed == 2
    assert list(errors_in_file(job)) == list(BAD)


def test_a_resumed_job_tries_samples_of_failed_micro_batches_alone(job: Job) -> None:
    """Samples that do not fail alone get results."""
    assert run(job, 6).stopped
    summary = resume(job)
    assert summary.samples == 4
    assert not np.isnan(np.load(job.output)[[2, 9]]).any()
    assert np.isnan(np.load(job.output)[list(BAD)]).all()


def test_each_output_has_its_own_file(job: Job) -> None:
    run(job)
    other = replace(job, output=job.output.with_name("other.jsonl"))
    save(job.input, (5,))
    run(other)
    assert list(errors_in_file(job)) == list(BAD)
    assert list(errors_in_file(other)) == [5]
    assert errors_of(other.output).name == "other.jsonl.errors.jsonl"
