"""Samples that cannot be read, prepared or written, in jobs that continue without them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipepar.errors import InputError, StageError
from pipepar.jobs.output.quarantine import errors_of
from pipepar.jobs.run import Job
from tests.helpers.folders import picture_folder, save_pictures, text_folder
from tests.helpers.functions import lengths
from tests.helpers.jobs.in_process import assert_same, column, errors_in_file, run

IDENTITY = "tests.helpers.functions:identity"


def test_user_functions_that_fail(tmp_path: Path) -> None:
    """Both functions fail on some samples, and are called again for each sample alone."""
    job = Job(
        *(IDENTITY, tmp_path / "in.npy", tmp_path / "out.npy"),
        preprocess="tests.helpers.functions:fails_at_6",
        postprocess="tests.helpers.functions:fails_at_7",
        micro_batch=4,
        on_error="skip",
    )
    np.save(tmp_path / "in.npy", column(0, 7, 2, 3, 4, 6, 5, 1, 2))
    assert run(job).failed == 2
    assert_same(np.load(job.output), column(0, math.nan, 2, 3, 4, math.nan, 5, 1, 2))
    assert errors_in_file(job) == {
        1: ("source", "KeyError: 'six'"),
        5: ("source", "KeyError: 'six'"),
    }
    run(replace(job, preprocess=None))
    assert errors_in_file(job) == {1: ("sink", "KeyError: 'seven'")}


@pytest.mark.parametrize("first", [7, 0])
def test_rows_that_cannot_be_written(tmp_path: Path, first: int) -> None:
    """Also if the first micro-batch fails."""
    np.save(tmp_path / "in.npy", column(first, 1, 2, 7 - first, 4))
    job = Job(
        *(IDENTITY, tmp_path / "in.npy", tmp_path / "out.jsonl"),
        postprocess="tests.helpers.functions:no_json_at_7",
        micro_batch=2,
        on_error="skip",
    )
    assert run(job).failed == 1
    at = 0 if first else 3
    assert {at: where for at, (where, _) in errors_in_file(job).items()} == {at: "sink"}
    assert "is a list that JSON cannot represent" in errors_in_file(job)[at][1]


def test_out_of_memory_ends_the_job(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", column(*range(9)))
    job = Job(
        *(IDENTITY, tmp_path / "in.npy", tmp_path / "out.npy"),
        preprocess="tests.helpers.functions:lacks_memory_at_6",
        micro_batch=2,
        on_error="skip",
    )
    with pytest.raises(StageError, match=r"failed on samples 6, 7: MemoryError"):
        run(job)
    assert run(replace(job, preprocess=None, resume=False)).failed == 0


def test_pictures(tmp_path: Path) -> None:
    """Also if the first picture, the example for the capture, cannot be read."""
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
    assert {at: stage for at, (stage, _) in errors_in_file(job).items()} == {
        0: "source",
        5: "source",
    }
    assert "p5.png cannot be read as a picture" in errors_in_file(job)[5][1]
    assert summary.confusion is not None
    assert summary.confusion.samples == 5


def test_all_pictures_are_unreadable(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "vit")
    for path in save_pictures(tmp_path / "in", 3):
        path.write_bytes(b"no picture")
    job = Job(str(folder), tmp_path / "in", tmp_path / "out.npy", on_error="skip")
    with pytest.raises(InputError, match=r"p0\.png cannot be read"):
        run(job)


TEXTS = [b"the fox", b"a dog \xff", b"quick brown fox", b"lazy", b"fox " * 40, b"dog over fox"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder whose tokenizer states no limit of the length."""
    folder = text_folder(tmp_path_factory.mktemp("model") / "bert", "BertModel", layers=1)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def valid(bert: Path) -> np.ndarray:
    """Return the results of the valid texts, each computed alone."""
    texts = [TEXTS[at] for at in (0, 2, 3, 5)]
    (bert.parent / "valid.txt").write_bytes(b"\n".join(texts) + b"\n")
    job = Job(str(bert), bert.parent / "valid.txt", bert.parent / "valid.npy", micro_batch=1)
    run(replace(job, on_error="skip"))
    assert not errors_of(job.output).exists()
    rows: np.ndarray = np.load(job.output)
    return rows


@pytest.mark.parametrize("micro_batch", [1, 2, 6])
def test_texts(tmp_path: Path, micro_batch: int, bert: Path, valid: np.ndarray) -> None:
    """One text is not UTF-8; one is too long for the model, and others are padded to its length."""
    (tmp_path / "in.txt").write_bytes(b"\n".join(TEXTS) + b"\n")
    job = Job(
        *(str(bert), tmp_path / "in.txt", tmp_path / "out.npy"),
        micro_batch=micro_batch,
        on_error="skip",
    )
    assert run(job).failed == 2
    errors = errors_in_file(job)
    assert [*errors] == [1, 4]
    assert errors[1][0] == "source"
    assert "line 2: byte 0xff at position 6 is not UTF-8" in errors[1][1]
    found = np.load(job.output)
    np.testing.assert_allclose(found[[0, 2, 3, 5]], valid, rtol=1e-4, atol=1e-5)
    assert np.isnan(found[[1, 4]]).all()


def test_lines_for_a_function(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a b"}\n{"body": "c"}\n"abc"\n[1\n')
    job = Job(
        *("tests.helpers.functions:identity", tmp_path / "in.jsonl", tmp_path / "out.npy"),
        preprocess="tests.helpers.functions:lengths",
        micro_batch=4,
        on_error="skip",
    )
    run(job)
    assert_same(np.load(job.output)[[0, 2]], lengths(["a b", "abc"]))
    assert {at: error.partition(";")[0] for at, (_, error) in errors_in_file(job).items()} == {
        1: f"{job.input}, line 2: found an object with the fields 'body'",
        3: f"{job.input}, line 4: invalid JSON (Expecting ',' delimiter)",
    }
