"""The command line with --labels: counts, tables and errors."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pipepar.jobs.run import Job, run_job
from pipepar.report.confusion import Confusion
from pipepar.report.quality import print_confusion
from tests.helpers.folders import text_folder
from tests.helpers.jobs.command import MLP, pipepar
from tests.helpers.jobs.threads import in_threads

IDENTITY = "tests.helpers.functions:identity"


def shown(confusion: Confusion) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        print_confusion(confusion, console)
    return capture.get()


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Return scores of three classes; the identity model predicts 0, 1, 1, 1, 0."""
    path = tmp_path / "scores.npy"
    np.save(path, np.eye(3, dtype=np.float32)[[0, 1, 1, 1, 0]])
    return path


@pytest.mark.parametrize("options", [(), ("--task", "image-classification")])
def test_accuracy_precision_and_recall(
    scores: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "y.txt").write_text("0\n1\n0\n2\n0\n")
    status, output = pipepar(
        *("run", IDENTITY, scores, tmp_path / "o.npy", "--labels", tmp_path / "y.txt"),
        *("--micro-batch", 2, *options),
    )
    assert status == 0, output
    assert "accuracy 60.00% of 5 samples in 3 classes" in output
    assert "0 3 100.00% 66.67% 1 1 33.33% 100.00% 2 1 - 0.00%" in output
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "o.npy")), torch.eye(3)[[0, 1, 1, 1, 0]])


def test_class_names_of_a_folder(tmp_path: Path) -> None:
    names = {0: "good", 1: "[bad]"}
    folder = text_folder(
        tmp_path / "bert",
        "BertForSequenceClassification",
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    (tmp_path / "in.txt").write_text("the fox\nlazy dog\nthe the\n")
    (tmp_path / "y.jsonl").write_text('"good"\n{"label": "[bad]"}\n0\n')
    status, output = pipepar(
        *("run", folder, tmp_path / "in.txt", tmp_path / "o.jsonl"),
        *("--task", "text-classification", "--labels", tmp_path / "y.jsonl"),
    )
    assert status == 0, output
    assert "of 3 samples in 2 classes" in output
    assert "good 2 " in output
    assert "[bad] 1 " in output


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ("0\n1\n", (), "y.txt has 2 labels for 5 samples"),
        ("0\n1\n0\n2\n3\n", (), "--labels has the label 3, the model has 3 classes, 0 to 2"),
        ("0\n1\nx\n0\n0\n", (), "line 3: found the label 'x'"),
        ("0\n" * 5, ("--task", "fill-mask"), "but the task is fill-mask"),
    ],
)
def test_invalid_labels_are_refused_before_the_work(
    scores: Path, tmp_path: Path, labels: str, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "y.txt").write_text(labels)
    status, output = pipepar(
        *("run", IDENTITY, scores, tmp_path / "o.npy", "--labels", tmp_path / "y.txt", *options)
    )
    assert status == 1
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "o.npy").exists()


def test_labels_are_checked_against_a_known_number_of_classes(rows: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([0] * 10 + [4]))
    labels = ("--labels", tmp_path / "y.npy")
    status, output = pipepar("run", MLP, rows, tmp_path / "o.npy", *labels)
    assert status == 1
    assert "sample 10 has the label 4, the model has 4 classes, 0 to 3" in output


def test_labels_need_scores_of_classes(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3, 4), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(2, int))
    status, output = pipepar(
        "run", MLP, tmp_path / "in.npy", tmp_path / "o.npy", "--labels", tmp_path / "y.npy"
    )
    assert status == 1
    assert "expected the scores of classes, floats [samples, classes]" in output


@pytest.mark.parametrize("label", ["0", "1"])
def test_a_model_with_one_score_is_refused_before_the_work(
    rows: Path, tmp_path: Path, label: str
) -> None:
    (tmp_path / "y.txt").write_text(f"{label}\n" * 11)
    status, output = pipepar(
        *("run", "tests.helpers.factories:one_score", rows, tmp_path / "o.npy"),
        *("--labels", tmp_path / "y.txt", "--trace", tmp_path / "trace.json"),
    )
    assert status == 1
    assert "the model has one score per sample, expected one for each class" in output
    assert "micro-batch" not in output
    assert not (tmp_path / "trace.json").exists()


def test_an_empty_input_has_no_accuracy(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((0, 4), np.float32))
    (tmp_path / "y.txt").write_text("")
    status, output = pipepar(
        *("run", MLP, tmp_path / "in.npy", tmp_path / "o.npy", "--labels", tmp_path / "y.txt")
    )
    assert status == 0, output
    assert "0 samples in" in output
    for absent in ("accuracy", "precision", "classes"):
        assert absent not in output


def test_all_ranks_have_the_counts_of_the_sink(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text("0\n1\n2\n3\n" * 2 + "0\n1\n2\n")
    labels = tmp_path / "y.txt"
    status, output = pipepar("run", MLP, rows, tmp_path / "o.npy", "--labels", labels)
    assert status == 0, output
    table = output[output.index("accuracy") : output.index("wrote")]
    named = Job(MLP, rows, tmp_path / "o.npy", micro_batch=32, labels=labels)
    for summary in in_threads(2, partial(run_job, job=named)):
        assert summary.confusion is not None
        assert " ".join(shown(summary.confusion).split()) + " " == table


def test_of_many_classes_only_the_worst_are_shown() -> None:
    names = tuple(f"c{number}" for number in range(31))
    cells = tuple((number, number, 1 + number) for number in range(31))
    every = shown(Confusion(names[:30], cells[:30]))
    assert all(f"c{number} " in every for number in range(30))
    assert "smallest recall" not in every
    missed = tuple((number, 0, 10) for number in (4, 20))
    some = shown(Confusion(names, tuple(sorted((*cells, *missed)))))
    assert "the 15 classes with the smallest recall:" in some
    table = [line.split()[0] for line in some.splitlines()[3:]]
    assert table[:3] == ["c4", "c20", "c30"]
    assert len(table) == 15
