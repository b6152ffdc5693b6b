"""Labels from files, and what is counted with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipepar.data.readers.labels import LabelledReader, read_labels
from pipepar.data.readers.open_prepared import open_arrays
from pipepar.errors import InputError
from pipepar.report.confusion import Confusion, Tally

NAMES = ("cat", "dog", "7")


def written(path: Path, data: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, data)
    else:
        path.write_text(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("y.npy", np.array([2, 0, 1], np.uint8), [2, 0, 1]),
        ("y.npy", np.array([], np.int64), []),
        ("y.txt", "dog\n0\n cat \n7\n", [1, 0, 0, 2]),
        ("y.txt", "\ufeffdog\r\n2", [1, 2]),
        ("y.jsonl", '"dog"\n2\n{"label": "7", "text": "x"}\n{"label": 0}\n', [1, 2, 2, 0]),
        ("y.txt", "", []),
    ],
)
def test_names_and_numbers(tmp_path: Path, name: str, data: Any, expected: list[int]) -> None:
    labels = read_labels(written(tmp_path / name, data), NAMES)
    assert labels.dtype == torch.int64
    assert labels.tolist() == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "y.txt",
            "dog\ncow\n",
            r"y\.txt, line 2: found the label 'cow'.*3 classes \(cat, dog, 7\)",
        ),
        ("y.txt", "dog\n\ncat\n", r"line 2: found the label ''"),
        ("y.txt", "3\n", r"line 1: found the label 3; .* 0 to 2"),
        ("y.txt", "-1\n", r"line 1: found the label '-1'"),
        ("y.jsonl", "0\n1.0\n", r"line 2: found the label 1\.0"),
        ("y.jsonl", "true\n", r"line 1: found the label True"),
        ("y.jsonl", '{"class": 1}\n', r"line 1: found an object with the fields 'class'"),
        ("y.jsonl", "dog\n", r"line 1: invalid JSON"),
        ("y.npy", np.array([0, 1, 3]), r"y\.npy, row 2: found the label 3"),
        ("y.npy", np.array([2**63], np.uint64), r"row 0: found the label 9223372036854775808"),
        ("y.npy", np.array([0, -1]), r"row 1: found the label -1"),
        ("y.npy", np.array([0.0, 1.0]), r"contains float64 of shape \(2,\); expected integers"),
        ("y.npy", np.array([[0], [1]]), r"contains int64 of shape \(2, 1\); expected integers"),
        ("y.csv", "0\n", r"'\.csv'; expected one of \.npy, \.txt, \.jsonl"),
    ],
)
def test_what_is_no_label(tmp_path: Path, name: str, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(written(tmp_path / name, data), NAMES)


def test_without_names_only_numbers_count(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path / "y.txt", "12\n0\n"), ()).tolist() == [12, 0]
    for text in ("dog\n", f"{2**63}\n"):
        with pytest.raises(InputError, match="the model names no classes"):
            read_labels(written(tmp_path / "y.txt", text), ())


def test_labels_follow_their_samples(rows: Path) -> None:
    labels = torch.arange(11) * 2
    reader = LabelledReader(open_arrays(rows), labels, Path("y.npy"))
    for feed in reader.feeds(4):
        assert torch.equal(feed.columns["label"], feed.samples * 2)
    assert torch.equal(reader.example().args[0], next(reader.feeds(2)).args[0])
    reader.require(21)
    with pytest.raises(InputError, match=r"y\.npy: sample 10 has the label 20, .* 20 classes"):
        reader.require(20)


@pytest.mark.parametrize("count", [10, 12])
def test_one_label_a_sample(rows: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"y.npy has {count} labels for 11 samples"):
        LabelledReader(open_arrays(rows), torch.zeros(count, dtype=torch.int64), Path("y.npy"))


def test_what_is_counted() -> None:
    tally = Tally(("cat", "dog", "cow"))
    # Right: cat, dog, cat, dog, dog; the cow is never predicted and the dogs once for a cat.
    tally.add(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    tally.add(torch.eye(3)[[1, 1]], torch.tensor([1, 2]))
    confusion = tally.confusion()
    assert confusion.cells == ((0, 0, 1), (0, 1, 1), (1, 1, 2), (2, 1, 1))
    assert confusion.samples == 5
    assert confusion.accuracy == 3 / 5
    cat, dog, cow = confusion.classes()
    assert (cat.precision, cat.recall) == (1.0, 0.5)
    assert (dog.precision, dog.recall) == (0.5, 1.0)
    assert (cow.precision, cow.recall) == (None, 0.0)
    assert (cow.samples, cow.predicted) == (1, 0)


def test_nothing_counted() -> None:
    confusion = Tally(("cat",)).confusion()
    assert confusion == Confusion(("cat",), ())
    assert confusion.accuracy is None
    assert confusion.classes()[0].recall is None


def test_classes_without_names_are_numbered() -> None:
    tally = Tally(())
    tally.add(torch.eye(3), torch.tensor([0, 1, 1]))
    assert tally.confusion().names == ("0", "1", "2")


@pytest.mark.parametrize("names", [(), ("cat",), ("cat", "dog", "cow", "hen")])
def test_what_is_restored_is_what_was_counted(names: tuple[str, ...]) -> None:
    """Each class, too, also one that no sample is of."""
    labels = torch.tensor([0, 1, 1]), torch.tensor([1, 1])
    logits = torch.eye(4)[[0, 1, 0]], torch.eye(4)[[0, 1]]
    whole, resumed = Tally(names), Tally(names)
    notes = [whole.add(*each) for each in zip(logits, labels, strict=True)]
    for note in json.loads(json.dumps(notes)):
        resumed.restore(note)
    assert resumed.confusion() == whole.confusion()
    assert len(resumed.confusion().names) == 4
    assert resumed.confusion().cells == ((0, 0, 1), (1, 0, 2), (1, 1, 2))


def test_a_label_beyond_the_classes() -> None:
    with pytest.raises(InputError, match="--labels has the label 3, the model has 3 classes, 0 to"):
        Tally(()).add(torch.eye(3), torch.tensor([0, 1, 3]))


def test_one_score_is_no_class(rows: Path, tmp_path: Path) -> None:
    labels = torch.zeros(11, dtype=torch.int64)
    message = "one score per sample, expected one for each class.*leave --labels out"
    with pytest.raises(InputError, match=message):
        Tally(()).add(torch.ones(11, 1), labels)
    with pytest.raises(InputError, match=message):
        LabelledReader(open_arrays(rows), labels, Path("y.npy")).require(1)
    with pytest.raises(InputError, match=message):
        read_labels(written(tmp_path / "y.txt", "0\n1\n"), ("LABEL_0",))
