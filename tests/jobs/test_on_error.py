"""Jobs that continue without failing samples: the results of the others are unchanged."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipepar.errors import InputError, StageError
from pipepar.jobs.output.quarantine import errors_of
from pipepar.jobs.run import Job
from tests.helpers import factories
from tests.helpers.cluster.mpirun import run_ranks
from tests.helpers.jobs import picky
from tests.helpers.jobs.command import pipepar
from tests.helpers.jobs.in_process import assert_same, errors_in_file, run
from tests.helpers.jobs.picky import FIRST, LAST, MIDDLE
from tests.helpers.seeds import seeds

MLP, PICKY, IDENTITY = (
    "tests.helpers.factories:mlp",
    "tests.helpers.factories:picky_last",
    "tests.helpers.functions:identity",
)
COUNT = 23


def save_rows(path: Path, bad: Sequence[int]) -> torch.Tensor:
    """Save rows of which some are refused by a picky model."""
    rows = np.random.default_rng(0).standard_normal((COUNT, 4), dtype=np.float32)
    rows[list(bad)] = 1e6
    np.save(path, rows)
    return torch.from_numpy(rows)


def expected(
    rows: torch.Tensor, bad: Sequence[int], size: int, model: torch.nn.Module
) -> torch.Tensor:
    """Return the results; if a micro-batch has a bad row, its rows are computed one by one."""
    results = []
    for begin in range(0, len(rows), size):
        numbers = range(begin, min(begin + size, len(rows)))
        step = 1 if set(bad) & set(numbers) else size
        for at in numbers[::step]:
            part = rows[at : min(at + step, numbers.stop)]
            lost = step == 1 and at in bad
            results.append(torch.full((1, 4), torch.nan) if lost else model(part).detach())
    return torch.cat(results)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    save_rows(tmp_path / "rows.npy", [3, 12, 13])
    return Job(PICKY, tmp_path / "rows.npy", tmp_path / "out.npy", micro_batch=5, on_error="skip")


@pytest.mark.parametrize(
    "bad", [[], [3], [0, 1, 22], [5, 6, 7, 8, 9], [*range(22)], [*range(0, COUNT, 5)]], ids=str
)
def test_the_other_samples_are_computed(job: Job, bad: list[int]) -> None:
    rows = save_rows(job.input, bad)
    summary = run(job)
    assert (summary.samples, summary.failed) == (COUNT, len(bad))
    assert_same(np.load(job.output), expected(rows, bad, 5, factories.picky_last()))
    assert errors_in_file(job) == dict.fromkeys(bad, (0, "ValueError: too much"))


def test_all_samples_fail(job: Job) -> None:
    save_rows(job.input, range(COUNT))
    with pytest.raises(InputError, match=r"all 23 samples failed, sample 0 in stage 0: ValueError"):
        run(job)
    assert [path.name for path in job.output.parent.iterdir()] == ["rows.npy"]


def test_without_the_option_the_job_fails(job: Job) -> None:
    with pytest.raises(StageError, match=r"micro-batch 0, sample 3: ValueError: too"):
        run(replace(job, on_error="stop"))
    assert not job.output.exists()
    assert not errors_of(job.output).exists()


def test_a_failed_job_is_resumed_without_the_failing_samples(job: Job) -> None:
    rows = save_rows(job.input, [12])
    with pytest.raises(StageError):
        run(replace(job, on_error="stop"))
    summary = run(replace(job, resume=True))
    assert (summary.samples, summary.failed) == (13, 1)
    assert_same(np.load(job.output), expected(rows, [12], 5, factories.picky_last()))


def test_the_errors_file_of_an_earlier_job_is_removed(job: Job) -> None:
    run(job)
    assert errors_in_file(job)
    run(replace(job, model=MLP, on_error="stop"))
    assert not errors_of(job.output).exists()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
@pytest.mark.parametrize("seed", seeds(6))
def test_stopped_at_any_time_and_resumed(job: Job, suffix: str, seed: int) -> None:
    some = random.Random(seed)
    save_rows(job.input, some.sample(range(COUNT), 4))
    job = replace(job, output=job.output.with_suffix(suffix))
    rounds = 0
    while run(replace(job, resume=rounds > 0), some.randrange(1, 8)).stopped:
        assert not errors_of(job.output).exists()
        rounds += 1
        assert rounds < 40
    found, errors = job.output.read_bytes(), errors_in_file(job)
    assert len(errors) == 4
    run(job)
    assert (found, errors) == (job.output.read_bytes(), errors_in_file(job))


def test_failed_between_the_last_row_and_the_rename(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are written, but only the journal has the failed samples."""
    run(job)
    found, errors = job.output.read_bytes(), errors_in_file(job)
    errors_of(job.output).unlink()

    def gone(*_: object) -> None:
        raise OSError(5, "gone")

    with monkeypatch.context() as patch:
        patch.setattr("pipepar.data.writers.partial.rename_synced", gone)
        patch.setattr("pipepar.jobs.output.quarantine.rename_synced", lambda *_: None)
        with pytest.raises(OSError, match="gone"):
            run(job)
    summary = run(replace(job, resume=True))
    assert (summary.samples, summary.failed) == (0, 3)
    assert (found, errors) == (job.output.read_bytes(), errors_in_file(job))


def test_failed_samples_are_null_in_jsonl(job: Job) -> None:
    rows = save_rows(job.input, [3])
    job = replace(job, output=job.output.with_suffix(".jsonl"))
    run(job)
    lines = [json.loads(line) for line in job.output.read_text().splitlines()]
    assert lines[3] is None
    wanted = expected(rows, [3], 5, factories.picky_last())
    assert [line["output"] for line in lines if line] == wanted[wanted[:, 0].isfinite()].tolist()


def test_failed_samples_are_0_in_integers(job: Job) -> None:
    rows = save_rows(job.input, [3])
    function = "tests.helpers.functions:whole_numbers"
    job = replace(job, output=job.output.with_suffix(".safetensors"), postprocess=function)
    run(job)
    found = load_file(job.output)
    wanted = expected(rows, [3], 5, factories.picky_last())
    kept = [at for at in range(COUNT) if at != 3]
    assert torch.equal(found["best"][kept], wanted[kept].argmax(-1))
    assert torch.equal(found["sure"][kept], wanted[kept].amax(-1) > 0)
    assert not found["best"][3]
    assert not found["sure"][3]


@pytest.mark.parametrize(("micro_batch", "begun", "left"), [(1, 9, COUNT - 8), (2, 15, 3)])
def test_a_sample_that_succeeds_when_resumed(
    job: Job, micro_batch: int, begun: int, left: int
) -> None:
    """With --on-error stop, a resumed job tries the samples again that failed alone."""
    rows = save_rows(job.input, [3, 20])
    job = replace(job, micro_batch=micro_batch)
    assert run(job, begun).stopped  # sample 3 has failed alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factories.Picky, "forward", lambda _, x: x.clone())
        summary = run(replace(job, on_error="stop", resume=True))
        assert (summary.samples, summary.failed) == (left, 0)
        wanted = factories.picky_last()(rows[[3]]).detach()
    assert_same(np.load(job.output)[[3]], wanted)
    assert not errors_of(job.output).exists()


def test_a_sample_that_failed_and_was_then_written(job: Job) -> None:
    """The journal has the failure and the result; the later record has precedence."""
    save_rows(job.input, [3])
    job = replace(job, micro_batch=1)
    assert run(job, 9).stopped  # sample 3 has failed alone
    job = replace(job, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factories.Picky, "forward", lambda _, x: x.clone())
        assert run(
            replace(job, on_error="stop"), 2
        ).stopped  # sample 3 is the first that is written
    summary = run(job)
    assert (summary.samples, summary.failed) == (COUNT - 10, 0)
    assert not errors_of(job.output).exists()
    assert not np.isnan(np.load(job.output)).any()


def test_a_model_of_a_fixed_batch_is_refused(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(factories.mlp(), (torch.zeros(5, 4),)), path)
    save_rows(job.input, [])
    np.save(job.input, np.zeros((20, 4), np.float32))
    with pytest.raises(InputError, match=r"--on-error skip tries .* one by one.*--micro-batch 1"):
        run(replace(job, model=str(path)))


@pytest.mark.parametrize("options", [(), ("--on-error", "skip")])
def test_an_input_with_the_name_of_the_errors_file_is_refused(
    tmp_path: Path, options: Sequence[str]
) -> None:
    path = tmp_path / "out.jsonl.errors.jsonl"
    path.write_text('"a"\n')
    given = (
        IDENTITY,
        path,
        tmp_path / "out.jsonl",
        "--preprocess",
        "tests.helpers.functions:lengths",
    )
    status, output = pipepar("run", *given, *options)
    assert status == 1
    assert path.exists()
    assert "out.jsonl.errors.jsonl would overwrite the data of input" in output


@pytest.mark.long(15)
@pytest.mark.parametrize("ranks", [3, pytest.param(2, marks=pytest.mark.full)])
def test_several_ranks(tmp_path: Path, ranks: int) -> None:
    """Stages after the one that fails pass the error on, and compute the next micro-batches."""
    rows = save_rows(tmp_path / "rows.npy", [])
    bad = {3: FIRST, 12: MIDDLE, 13: LAST, 22: FIRST}
    for at, value in bad.items():
        rows[at] = value
    np.save(tmp_path / "rows.npy", rows.numpy())
    job = Job("tests.helpers.jobs.picky:refuses", tmp_path / "rows.npy", tmp_path / "out.npy")
    command = ["-m", "pipepar", "run", job.model, str(job.input), str(job.output)]
    ended = run_ranks(ranks, [*command, "--micro-batch", "5", "--on-error", "skip"], 240)
    assert ended.status == 0, ended.output
    assert "13 samples were in micro-batches that failed; each is tried alone" in ended.output
    assert "left out 4 failed samples, listed in" in ended.output
    assert_same(np.load(job.output), expected(rows, [*bad], 5, picky.refuses()))
    found = errors_in_file(job)
    assert [*found] == [*bad]
    assert [error for _, error in found.values()] == [
        f"ValueError: refused beyond {limit}" for limit in (1e5, 100, LAST, 1e5)
    ]
    # The stage of the middle layer depends on the measurements.
    assert found[3][0] == found[22][0] == 0
    assert found[12][0] in range(ranks)
    assert found[13][0] == ranks - 1
