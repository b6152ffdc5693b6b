"""Jobs that go on without the samples that fail: the others have the results they always have."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.ranks import run_ranks
from pipepar.comm.world import World
from pipepar.errors import InputError, StageError
from pipepar.runtime.job import Job, run_job
from pipepar.runtime.quarantine import errors_of
from pipepar.runtime.summary import RunSummary
from tests import factories
from tests.command import after, pipepar
from tests.folders import picture_folder, save_pictures, text_folder
from tests.functions import lengths

MLP, PICKY, IDENTITY = (
    "tests.factories:mlp",
    "tests.factories:picky_last",
    "tests.functions:identity",
)
COUNT = 23


def run(job: Job, micro_batches: int = 10_000) -> RunSummary:
    return run_job(World.start(), job, asked_to_stop=after(micro_batches))


def told(job: Job) -> dict[int, tuple[int | str, str]]:
    """What the file beside the output says; nothing if there is none."""
    path = errors_of(job.output)
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    assert all(list(each) == ["id", "stage", "error"] for each in found)
    assert sorted({each["id"] for each in found}) == [each["id"] for each in found]
    return {each["id"]: (each["stage"], each["error"]) for each in found}


def save_rows(path: Path, bad: Sequence[int]) -> torch.Tensor:
    """Rows of which some are more than a picky model can bear."""
    rows = np.random.default_rng(0).standard_normal((COUNT, 4), dtype=np.float32)
    rows[list(bad)] = 1e6
    np.save(path, rows)
    return torch.from_numpy(rows)


def expected(
    rows: torch.Tensor, bad: Sequence[int], size: int, model: torch.nn.Module
) -> torch.Tensor:
    """Micro-batches that have a bad row are done row by row, and these are NaN."""
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


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def assert_same(found: Any, wanted: torch.Tensor) -> None:
    assert np.array_equal(found, wanted.numpy(), equal_nan=True)


@pytest.mark.parametrize(
    "bad", [[], [3], [0, 1, 22], [5, 6, 7, 8, 9], [*range(22)], [*range(0, COUNT, 5)]], ids=str
)
def test_the_others_are_computed(job: Job, bad: list[int]) -> None:
    rows = save_rows(job.input, bad)
    summary = run(job)
    assert (summary.samples, summary.failed) == (COUNT, len(bad))
    assert_same(np.load(job.output), expected(rows, bad, 5, factories.picky_last()))
    assert told(job) == dict.fromkeys(bad, (0, "ValueError: too much"))


def test_all_of_them_fail(job: Job) -> None:
    save_rows(job.input, range(COUNT))
    with pytest.raises(InputError, match=r"all 23 samples failed, sample 0 in stage 0: ValueError"):
        run(job)
    assert [path.name for path in job.output.parent.iterdir()] == ["rows.npy"]


def test_without_the_option_the_job_ends(job: Job) -> None:
    with pytest.raises(StageError, match=r"micro-batch 0, sample 3: ValueError: too"):
        run(replace(job, on_error="stop"))
    assert not job.output.exists()
    assert not errors_of(job.output).exists()


def test_a_job_that_ended_goes_on_without(job: Job) -> None:
    rows = save_rows(job.input, [12])
    with pytest.raises(StageError):
        run(replace(job, on_error="stop"))
    summary = run(replace(job, resume=True))
    assert (summary.samples, summary.failed) == (13, 1)
    assert_same(np.load(job.output), expected(rows, [12], 5, factories.picky_last()))


def test_what_an_earlier_job_told_is_gone(job: Job) -> None:
    run(job)
    assert told(job)
    run(replace(job, model=MLP, on_error="stop"))
    assert not errors_of(job.output).exists()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
@pytest.mark.parametrize("seed", range(6))
def test_stopped_at_any_time_and_resumed(job: Job, suffix: str, seed: int) -> None:
    some = random.Random(seed)
    save_rows(job.input, some.sample(range(COUNT), 4))
    job = replace(job, output=job.output.with_suffix(suffix))
    rounds = 0
    while run(replace(job, resume=rounds > 0), some.randrange(1, 8)).stopped:
        assert not errors_of(job.output).exists()
        rounds += 1
        assert rounds < 40
    found, errors = job.output.read_bytes(), told(job)
    assert len(errors) == 4
    run(job)
    assert (found, errors) == (job.output.read_bytes(), told(job))


def test_ended_between_the_last_row_and_the_name(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is written, and only the journal knows what failed."""
    run(job)
    found, errors = job.output.read_bytes(), told(job)
    errors_of(job.output).unlink()

    def gone(*_: object) -> None:
        raise OSError(5, "gone")

    with monkeypatch.context() as patch:
        patch.setattr("pipepar.data.partial.put_under", gone)
        patch.setattr("pipepar.runtime.quarantine.put_under", lambda *_: None)
        with pytest.raises(OSError, match="gone"):
            run(job)
    summary = run(replace(job, resume=True))
    assert (summary.samples, summary.failed) == (0, 3)
    assert (found, errors) == (job.output.read_bytes(), told(job))


def test_answers_are_null(job: Job) -> None:
    rows = save_rows(job.input, [3])
    job = replace(job, output=job.output.with_suffix(".jsonl"))
    run(job)
    lines = [json.loads(line) for line in job.output.read_text().splitlines()]
    assert lines[3] is None
    wanted = expected(rows, [3], 5, factories.picky_last())
    assert [line["output"] for line in lines if line] == wanted[wanted[:, 0].isfinite()].tolist()


def test_whole_numbers_are_0(job: Job) -> None:
    rows = save_rows(job.input, [3])
    function = "tests.functions:whole_numbers"
    job = replace(job, output=job.output.with_suffix(".safetensors"), postprocess=function)
    run(job)
    found = load_file(job.output)
    wanted = expected(rows, [3], 5, factories.picky_last())
    kept = [at for at in range(COUNT) if at != 3]
    assert torch.equal(found["best"][kept], wanted[kept].argmax(-1))
    assert torch.equal(found["sure"][kept], wanted[kept].amax(-1) > 0)
    assert not found["best"][3]
    assert not found["sure"][3]


def test_functions_of_the_users(tmp_path: Path) -> None:
    """Both fail on some samples: they are asked again for each sample alone."""
    job = Job(
        *(IDENTITY, tmp_path / "in.npy", tmp_path / "out.npy"),
        preprocess="tests.functions:fails_at_6",
        postprocess="tests.functions:fails_at_7",
        micro_batch=4,
        on_error="skip",
    )
    np.save(tmp_path / "in.npy", column(0, 7, 2, 3, 4, 6, 5, 1, 2))
    assert run(job).failed == 2
    assert_same(np.load(job.output), column(0, math.nan, 2, 3, 4, math.nan, 5, 1, 2))
    assert told(job) == {1: ("source", "KeyError: 'six'"), 5: ("source", "KeyError: 'six'")}
    run(replace(job, preprocess=None))
    assert told(job) == {1: ("sink", "KeyError: 'seven'")}


@pytest.mark.parametrize("first", [7, 0])
def test_rows_that_do_not_fit_the_output(tmp_path: Path, first: int) -> None:
    """Whatever the very first micro-batch is like."""
    np.save(tmp_path / "in.npy", column(first, 1, 2, 7 - first, 4))
    job = Job(
        *(IDENTITY, tmp_path / "in.npy", tmp_path / "out.jsonl"),
        postprocess="tests.functions:no_json_at_7",
        micro_batch=2,
        on_error="skip",
    )
    assert run(job).failed == 1
    at = 0 if first else 3
    assert {at: where for at, (where, _) in told(job).items()} == {at: "sink"}
    assert "got a list that JSON cannot hold" in told(job)[at][1]


def test_lack_of_memory_is_no_samples_fault(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", column(*range(9)))
    job = Job(
        *(IDENTITY, tmp_path / "in.npy", tmp_path / "out.npy"),
        preprocess="tests.functions:lacks_memory_at_6",
        micro_batch=2,
        on_error="skip",
    )
    with pytest.raises(StageError, match=r"failed on samples 6, 7: MemoryError"):
        run(job)
    assert run(replace(job, preprocess=None, resume=False)).failed == 0


def test_what_failed_once_and_then_did_not(job: Job) -> None:
    """A job that stops at the first tries again what one that did not had given up."""
    save_rows(job.input, [3])
    job = replace(job, micro_batch=1)
    assert run(job, 9).stopped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factories.Picky, "forward", lambda _, x: x.clone())
        summary = run(replace(job, on_error="stop", resume=True))
    assert (summary.samples, summary.failed) == (COUNT - 8, 0)
    assert not errors_of(job.output).exists()


def test_pictures(tmp_path: Path) -> None:
    """The very first cannot be read either, though the model is captured with an example."""
    folder = picture_folder(tmp_path / "vit")
    paths = save_pictures(tmp_path / "in", 7)
    (tmp_path / "y.txt").write_text("cat\ndog\ndog\ncat\nbird\ncat\ncat\n")
    job = Job(
        *(str(folder), tmp_path / "in", tmp_path / "out.jsonl", "image-classification"),
        labels=tmp_path / "y.txt",
        micro_batch=1,
        on_error="skip",
    )
    run(job)
    before = [json.loads(line) for line in job.output.read_text().splitlines()]
    for at in (0, 5):
        paths[at].write_bytes(b"no picture")
    summary = run(replace(job, micro_batch=3))
    after = [json.loads(line) for line in job.output.read_text().splitlines()]
    assert [after[0], after[5]] == [None, None]
    for at in (1, 2, 3, 4, 6):
        assert after[at]["label"] == before[at]["label"]
    assert {at: stage for at, (stage, _) in told(job).items()} == {0: "source", 5: "source"}
    assert "p5.png cannot be read as a picture" in told(job)[5][1]
    assert summary.confusion is not None
    assert summary.confusion.samples == 5


def test_no_picture_can_be_read(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "vit")
    for path in save_pictures(tmp_path / "in", 3):
        path.write_bytes(b"no picture")
    job = Job(str(folder), tmp_path / "in", tmp_path / "out.npy", on_error="skip")
    with pytest.raises(InputError, match=r"p0\.png cannot be read"):
        run(job)


TEXTS = [b"the fox", b"a dog \xff", b"quick brown fox", b"lazy", b"fox " * 40, b"dog over fox"]


@pytest.mark.parametrize("micro_batch", [1, 2, 6])
def test_texts(tmp_path: Path, micro_batch: int) -> None:
    """One is no UTF-8; one is longer than the model's positions, for all that it is padded with."""
    folder = text_folder(tmp_path / "bert", "BertModel")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "in.txt").write_bytes(b"\n".join(TEXTS) + b"\n")
    job = Job(
        *(str(folder), tmp_path / "in.txt", tmp_path / "out.npy"),
        micro_batch=micro_batch,
        on_error="skip",
    )
    assert run(job).failed == 2
    errors = told(job)
    assert [*errors] == [1, 4]
    assert errors[1][0] == "source"
    assert "line 2: byte 0xff at position 6 is not UTF-8" in errors[1][1]
    found = np.load(job.output)
    sound = [TEXTS[at] for at in (0, 2, 3, 5)]
    (tmp_path / "in.txt").write_bytes(b"\n".join(sound) + b"\n")
    run(replace(job, micro_batch=1))
    np.testing.assert_allclose(found[[0, 2, 3, 5]], np.load(job.output), rtol=1e-4, atol=1e-5)
    assert np.isnan(found[[1, 4]]).all()
    assert not errors_of(job.output).exists()


def test_lines_for_a_function(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a b"}\n{"body": "c"}\n"abc"\n[1\n')
    job = Job(
        *("tests.functions:identity", tmp_path / "in.jsonl", tmp_path / "out.npy"),
        preprocess="tests.functions:lengths",
        micro_batch=4,
        on_error="skip",
    )
    run(job)
    assert_same(np.load(job.output)[[0, 2]], lengths(["a b", "abc"]))
    assert {at: error.partition(";")[0] for at, (_, error) in told(job).items()} == {
        1: f"{job.input}, line 2: found an object with the fields 'body'",
        3: f"{job.input}, line 4: no valid JSON (Expecting ',' delimiter)",
    }


def test_a_model_for_one_size_is_refused(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(factories.mlp(), (torch.zeros(5, 4),)), path)
    save_rows(job.input, [])
    np.save(job.input, np.zeros((20, 4), np.float32))
    with pytest.raises(InputError, match=r"--on-error skip tries .* one by one.*--micro-batch 1"):
        run(replace(job, model=str(path)))


@pytest.mark.parametrize("options", [(), ("--on-error", "skip")])
def test_the_file_that_tells_is_not_the_input(tmp_path: Path, options: Sequence[str]) -> None:
    path = tmp_path / "out.jsonl.errors.jsonl"
    path.write_text('"a"\n')
    given = (IDENTITY, path, tmp_path / "out.jsonl", "--preprocess", "tests.functions:lengths")
    status, output = pipepar("run", *given, *options)
    assert status == 1
    assert path.exists()
    assert "out.jsonl.errors.jsonl would replace what input" in output


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("model", ["picky_first", "picky_last"])
def test_several_ranks(tmp_path: Path, ranks: int, model: str) -> None:
    """Stages behind the one that fails compute nothing, and are there for what comes next."""
    bad = [3, 12, 13, 22]
    rows = save_rows(tmp_path / "rows.npy", bad)
    command = ["-m", "pipepar", "run", f"tests.factories:{model}", str(tmp_path / "rows.npy")]
    command += [str(tmp_path / "out.npy"), "--micro-batch", "5", "--on-error", "skip"]
    ended = run_ranks(ranks, command, 60)
    assert ended.status == 0, ended.output
    assert "13 samples were in micro-batches that failed; each is tried alone" in ended.output
    assert "4 samples failed and were left out" in ended.output
    assert_same(np.load(tmp_path / "out.npy"), expected(rows, bad, 5, getattr(factories, model)()))
    job = Job(model, tmp_path / "rows.npy", tmp_path / "out.npy")
    ((stage, error),) = set(told(job).values())
    assert [*told(job)] == bad
    assert error == "ValueError: too much"
    # Which of the later stages has the layer that fails, is a question of what was measured.
    assert stage == 0 if model == "picky_first" else stage in range(1, ranks)
