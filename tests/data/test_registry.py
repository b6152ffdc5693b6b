"""A format is one file: once added to its package, it is found, listed and used by jobs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipepar.data.readers import formats as of_inputs
from pipepar.data.readers.registry import (
    find_input_format,
    input_formats,
    input_summaries,
    kind_by_name,
)
from pipepar.data.writers import formats as of_outputs
from pipepar.data.writers.registry import find_output_format, output_formats, output_summaries
from pipepar.errors import InputError
from pipepar.jobs.run import Job
from tests.helpers import factories, functions
from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import MLP, command, pipepar
from tests.helpers.jobs.in_process import errors_in_file, hidden_files, resume, run
from tests.helpers.one_more_file import one_more_file

TEXTS = ["the quick fox", 'a "dog",\nover the fox', "", "lazy\n\ndog", "jump\r\nover", "fox"]
LENGTHS = ("--preprocess", "tests.helpers.functions:lengths")


@pytest.fixture
def csv_input(tmp_path: Path) -> Iterator[Path]:
    """Yield a .csv file of texts, and add a format for it."""
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(TEXTS)])
    with one_more_file(of_inputs, "csv.py", tmp_path / "more"):
        yield path


@pytest.fixture
def tsv(tmp_path: Path) -> Iterator[Path]:
    """Yield the path of a .tsv output, and add a format for it."""
    with one_more_file(of_outputs, "tsv.py", tmp_path / "more"):
        (tmp_path / "out").mkdir()
        yield tmp_path / "out/out.tsv"


def test_suffixes_are_unique() -> None:
    suffixes = [suffix for each in input_formats() for suffix in each.suffixes]
    assert len(set(suffixes)) == len(suffixes) > 0
    assert len({each.suffix for each in output_formats()}) == len(output_formats()) > 0


def test_each_format_is_described() -> None:
    inputs, outputs = input_summaries(), output_summaries()
    assert (len(inputs), len(outputs)) == (len(input_formats()), len(output_formats()))
    assert all(line.endswith(".") for line in (*inputs, *outputs))
    for each in input_formats():
        assert any(suffix in line for suffix in each.suffixes for line in inputs)
    assert all(any(each.suffix in line for line in outputs) for each in output_formats())


def test_a_format_without_its_file_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "in.csv").touch()
    with pytest.raises(InputError, match=r"'\.csv'; expected one of \.npy, .*\.jsonl"):
        find_input_format(tmp_path / "in.csv")
    assert kind_by_name(tmp_path / "in.csv") is None
    with pytest.raises(InputError, match=r"'\.tsv'; expected one of \.npy, .*\.jsonl"):
        find_output_format(tmp_path / "out.tsv")


def test_an_added_reader_with_a_tokenizer(csv_input: Path, tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertModel")
    same = tmp_path / "in.jsonl"
    same.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    found = []
    for source in (csv_input, same):
        target = tmp_path / f"{source.suffix[1:]}.npy"
        status, output = pipepar("run", folder, source, target, "--micro-batch", 2)
        assert status == 0, output
        found.append(np.load(target))
    assert len(found[0]) == len(TEXTS)
    assert np.array_equal(*found)


def test_an_added_reader_with_preprocess(csv_input: Path, tmp_path: Path) -> None:
    status, output = pipepar("run", MLP, csv_input, tmp_path / "o.npy", *LENGTHS)
    assert status == 0, output
    with torch.no_grad():
        expected = factories.mlp()(functions.lengths(TEXTS))
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "o.npy")), expected)


def test_a_row_without_a_text(csv_input: Path, tmp_path: Path) -> None:
    with csv_input.open("a") as file:
        file.write("6\r\n7,the end\r\n")
    job = Job(MLP, csv_input, tmp_path / "o.npy", micro_batch=2, preprocess=LENGTHS[1])
    with pytest.raises(InputError, match=r"in\.csv, row 7: no field 'text'"):
        run(job)
    summary = run(replace(job, on_error="skip"))
    assert summary.failed == 1
    ((stage, error),) = errors_in_file(job).values()
    assert stage == "source"
    assert "in.csv, row 7: no field 'text'" in error
    assert np.isnan(np.load(job.output)).all(1).tolist() == [False] * 6 + [True, False]


def test_an_added_reader_is_listed(csv_input: Path) -> None:
    status, output = command("run", "--help")
    assert status == 0
    assert "Text (.csv): a sample per row, the field in its column 'text'." in _words(output)
    csv_input.rename(csv_input.with_suffix(".cvs"))
    with pytest.raises(InputError, match=r"expected one of .*\.csv"):
        find_input_format(csv_input.with_suffix(".cvs"))


def test_an_added_writer(tsv: Path, rows: Path) -> None:
    for target in (tsv, tsv.with_suffix(".npy")):
        status, output = pipepar("run", MLP, rows, target, "--micro-batch", 3)
        assert status == 0, output
    found = np.loadtxt(tsv, delimiter="\t", dtype=np.float32, ndmin=2)
    assert np.array_equal(found, np.load(tsv.with_suffix(".npy")))


def test_an_unfinished_output_of_an_added_writer_is_resumed(tsv: Path, rows: Path) -> None:
    job = Job(MLP, rows, tsv, micro_batch=3)
    run(replace(job, output=tsv.with_name("whole.tsv")))
    assert run(job, micro_batches=2).stopped
    assert hidden_files(tsv.parent) == [".out.tsv.journal", ".out.tsv.partial"]
    resume(job)
    assert tsv.read_bytes() == tsv.with_name("whole.tsv").read_bytes()


def test_an_added_writer_refuses_values(tsv: Path, rows: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", x=np.ones((2, 4), np.float32), y=np.ones((2, 4), np.float32))
    two = Job("tests.helpers.factories:two", tmp_path / "xy.npz", tsv, micro_batch=2)
    with pytest.raises(InputError, match=r"a \.tsv file holds one tensor \[B, values\]"):
        run(two)
    answers = Job(MLP, rows, tsv, postprocess="tests.helpers.functions:as_json", micro_batch=2)
    with pytest.raises(InputError, match=r"out\.tsv holds numbers; found a dict"):
        run(answers)
    assert not tsv.exists()


def test_an_added_writer_is_listed(tsv: Path) -> None:
    status, output = command("run", "--help")
    assert status == 0
    assert "Numbers of one tensor (.tsv): a sample per line" in _words(output)
    with pytest.raises(InputError, match=r"expected one of .*\.tsv"):
        find_output_format(tsv.with_suffix(".tvs"))


def _words(output: str) -> str:
    """Return the text of a help page without its frames."""
    return " ".join(output.replace("│", " ").split())
