"""Jobs that end early and are resumed: the output equals that of an uninterrupted run."""

import json
import os
import random
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipepar.comm.world import World
from pipepar.data.writers.journal import journal_of
from pipepar.errors import InputError
from pipepar.jobs.run import Job, run_job
from pipepar.report.confusion import Confusion
from tests.helpers.folders import picture_folder, save_pictures, text_folder
from tests.helpers.jobs.command import MLP, command, pipepar
from tests.helpers.jobs.in_process import hidden_files, resume, run
from tests.helpers.seeds import seeds

WORDS = "the quick brown fox jump over a lazy dog".split()


@pytest.fixture
def job(rows: Path, tmp_path: Path) -> Job:
    return Job(MLP, rows, tmp_path / "out.npy", micro_batch=2)


@pytest.fixture
def texts(tmp_path: Path) -> Job:
    """Return a job on texts of mixed length, more than a window of the reader."""
    some = random.Random(4)
    lines = [" ".join(some.choices(WORDS, k=some.randrange(1, 12))) for _ in range(4321)]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    folder = text_folder(tmp_path / "bert", "BertModel", layers=1)
    return Job(str(folder), tmp_path / "in.txt", tmp_path / "out.npy", micro_batch=64)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
@pytest.mark.parametrize("micro_batches", range(1, 6))
def test_stopped_and_resumed(job: Job, suffix: str, micro_batches: int) -> None:
    job = replace(job, output=job.output.with_suffix(suffix))
    stopped = run(job, micro_batches).stopped
    assert str(stopped) == (
        f"stopped by SIGTERM after {2 * micro_batches} of 11 samples; continue with --resume"
    )
    assert not job.output.exists()
    assert hidden_files(job.output.parent) == [f".out{suffix}.journal", f".out{suffix}.partial"]
    summary = resume(replace(job, depth=3))
    assert summary.stopped is None
    assert summary.samples == 11 - 2 * micro_batches
    found = job.output.read_bytes()
    assert hidden_files(job.output.parent) == []
    run(job)
    assert found == job.output.read_bytes()


def test_stopped_before_the_first_micro_batch(job: Job) -> None:
    assert str(run(job, 0).stopped).startswith("stopped by SIGTERM after 0 of 11")
    assert hidden_files(job.output.parent) == []
    halted = run_job(World.start(), job, stop_requested=lambda: "SIGTERM").stopped
    assert str(halted) == "stopped by SIGTERM before it began; continue with --resume"
    assert hidden_files(job.output.parent) == []
    assert resume(job).samples == 11


def test_stopped_after_the_last_micro_batch(job: Job) -> None:
    assert run(job, 6).stopped is None
    assert job.output.exists()


@pytest.mark.parametrize("seed", seeds(4))
def test_texts(texts: Job, seed: int) -> None:
    """The job is stopped at random several times; the last micro-batch is smaller."""
    some, done = random.Random(seed), 0
    while (summary := run(replace(texts, resume=done > 0), some.randrange(15, 50))).stopped:
        done += summary.samples
        assert summary.stopped.done == done
    assert done + summary.samples == 4321
    found = texts.output.read_bytes()
    run(texts)
    assert found == texts.output.read_bytes()


def test_samples_that_are_done_are_not_prepared_again(
    texts: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import BertTokenizer

    run(texts, 65)  # one window of 4096 texts, and one more micro-batch
    seen = list[int]()
    whole = BertTokenizer.__call__

    def counted(self: BertTokenizer, texts: list[str], **options: object) -> object:
        seen.append(len(texts))
        return whole(self, texts, **options)

    monkeypatch.setattr(BertTokenizer, "__call__", counted)
    resume(texts)
    assert 4096 not in seen
    assert 4321 - 4096 in seen


def test_pictures_and_accuracy(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "vit")
    save_pictures(tmp_path / "in", 7)
    (tmp_path / "y.txt").write_text("cat\ndog\ndog\ncat\nbird\ncat\ncat\n")
    job = Job(
        *(str(folder), tmp_path / "in", tmp_path / "out.jsonl"),
        task="image-classification",
        labels=tmp_path / "y.txt",
        micro_batch=2,
    )
    whole = run(job).confusion
    expected = job.output.read_bytes()
    assert run(job, 2).stopped
    found = resume(job).confusion
    assert isinstance(found, Confusion)
    assert found == whole
    assert found.samples == 7
    assert job.output.read_bytes() == expected


def test_resuming_after_a_stage_failed(rows: Path, tmp_path: Path) -> None:
    arguments = ("run", "tests.helpers.factories:raises_last", rows, tmp_path / "o.npy")
    status, output = pipepar(*arguments, "--micro-batch", 2)
    assert status == 1, output
    status, output = pipepar(*arguments, "--micro-batch", 2, "--resume")
    assert status == 0, output
    assert "resuming: 8 of 11 samples are done already" in output
    assert "3 samples in" in output
    assert np.load(tmp_path / "o.npy").shape == (11, 4)


def test_an_unfinished_output_is_reported(job: Job) -> None:
    run(job, 3)
    status, output = pipepar("run", MLP, job.input, job.output)
    assert status == 0, output
    assert "unfinished, and this run overwrites it; --resume would continue it" in output
    status, output = pipepar("run", MLP, job.input, job.output, "--resume")
    assert status == 0, output
    assert "out.npy is finished, so there is nothing to resume; it is replaced" in output
    assert "11 samples in" in output


def test_another_micro_batch_is_refused(job: Job) -> None:
    run(job, 3)
    left = [(job.output.parent / name).read_bytes() for name in hidden_files(job.output.parent)]
    status, output = pipepar(
        "run", MLP, job.input, job.output, "--resume", "--micro-batch", 3, "--dtype", "float16"
    )
    assert status == 1
    assert "micro_batch 2 then, 3 now; dtype auto then, float16 now. Expected the same" in output
    assert [
        (job.output.parent / name).read_bytes() for name in hidden_files(job.output.parent)
    ] == left
    assert resume(job).samples == 5


def test_a_micro_batch_larger_than_the_input(job: Job) -> None:
    job = replace(job, micro_batch=32)
    assert run(replace(job, postprocess="tests.helpers.functions:doubled"), 0).stopped
    run(replace(job, micro_batch=8), 1)
    status, output = pipepar("run", MLP, job.input, job.output, "--resume", "--micro-batch", 32)
    assert status == 1
    assert "micro_batch 8 then, 11 now" in output


def changed_input(job: Job) -> Job:
    np.save(job.input, np.ones((11, 4), np.float32))
    return job


def other_input(job: Job) -> Job:
    np.save(job.input, np.ones((12, 4), np.float32))
    return job


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_input, "input"),
        (other_input, "samples 11 then, 12 now"),
        (lambda job: replace(job, model="tests.helpers.factories:one_layer"), "model"),
        (lambda job: replace(job, model="tests.helpers.factories:one_layer"), "weights"),
        (
            lambda job: replace(job, postprocess="tests.helpers.functions:doubled"),
            "postprocess none then",
        ),
        (
            lambda job: replace(job, preprocess="tests.helpers.functions:doubled"),
            "preprocess none then",
        ),
    ],
)
def test_another_job_is_refused(job: Job, change: Callable[[Job], Job], named: str) -> None:
    run(job, 3)
    with pytest.raises(InputError, match=rf"belongs to another job: .*\b{named}\b"):
        resume(change(job))
    assert len(hidden_files(job.output.parent)) == 2


def test_other_weights_are_refused(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    from tests.helpers import factories

    weights = tmp_path / "w.safetensors"
    state = factories.mlp().state_dict()
    save_file(state, weights)
    job = Job(MLP, rows, tmp_path / "out.npy", weights=weights, micro_batch=2)
    run(job, 3)
    save_file({name: value + torch.ones(()) for name, value in state.items()}, weights)
    with pytest.raises(InputError, match=r"another job: weights \w+ then, \w+ now\. Expected"):
        resume(job)


def test_a_journal_of_another_version_is_refused(job: Job) -> None:
    run(job, 3)
    journal = journal_of(job.output)
    contents = ({"format": 99}, {"record": "of an unknown format"}, [[[0, 2]], [], 1, 2, 3, "more"])
    texts = [json.dumps(each).encode() for each in contents]
    journal.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))
    with pytest.raises(InputError, match="has the format 99, expected 2"):
        resume(job)


def test_resuming_after_all_rows_but_before_the_rename(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("pipepar.data.writers.partial.rename_synced", fails)
        with pytest.raises(OSError, match="Input/output"):
            run(job)
    assert resume(job).samples == 0
    assert np.load(job.output).shape == (11, 4)


def test_the_summary_counts_the_samples_of_this_run(job: Job) -> None:
    run(job, 3)
    status, output = pipepar("run", MLP, job.input, job.output, "--resume", "--micro-batch", 2)
    assert status == 0, output
    assert "resuming: 6 of 11 samples are done already" in output
    assert "5 samples in" in output
    assert "11 samples in" not in output
    run(job, 3)
    summary = resume(job)
    assert summary.samples == 5
    assert [stage.totals["compute"].count for stage in summary.stages] == [3]


def test_the_option_is_explained() -> None:
    status, output = command("run", "--help")
    assert status == 0
    assert "--resume" in output
    assert "SIGUSR1" in output


def test_an_output_that_is_a_symbolic_link(job: Job) -> None:
    (job.output.parent / "scratch").mkdir()
    job.output.symlink_to("scratch/rows")
    run(job, 3)
    assert resume(job).samples == 5
    assert job.output.is_symlink()
    assert np.load(job.output).shape == (11, 4)
    assert os.listdir(job.output.parent / "scratch") == ["rows"]
