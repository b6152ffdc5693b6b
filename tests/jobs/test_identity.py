"""The identity of a job: a run with other sources, settings or versions is refused."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipepar.comm.world import World
from pipepar.errors import InputError
from pipepar.files import fingerprint
from pipepar.jobs.run import Job, run_job
from tests.helpers.folders import save_pictures, text_folder
from tests.helpers.jobs.command import after

PARTS = """
import torch
from torch import nn

class Part(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        seen = isinstance(x, torch._subclasses.FakeTensor)
        return x.clone() if seen else x * self.scale
"""
MODELS = """
import os
from torch import nn
from .parts import Part
from settings import MEAN

def make():
    return nn.Sequential(Part(float(os.environ["SCALE"]))).eval()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a user's package with a factory in one module, and the model's layers in another."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("from mine.models import make\n")
    (folder / "models.py").write_text(MODELS)
    (folder / "parts.py").write_text(PARTS)
    (folder / "other.py").write_text("")
    (tmp_path / "settings.py").write_text("MEAN = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SCALE", "2")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "settings")]:
        del sys.modules[name]


@pytest.fixture
def job(rows: Path, tmp_path: Path) -> Job:
    return Job("mine:make", rows, tmp_path / "out.npy", micro_batch=2)


def run(job: Job, micro_batches: int) -> None:
    run_job(World.start(), job, stop_requested=after(micro_batches))


@pytest.mark.parametrize("changed", ["models.py", "parts.py", "../settings.py"])
def test_other_sources(package: Path, job: Job, changed: str) -> None:
    run(job, 2)
    (package / "other.py").write_text("changed = True\n")
    run(replace(job, resume=True), 1)
    (package / changed).write_text((package / changed).read_text() + "changed = True\n")
    with pytest.raises(InputError, match=r"another job: model \S+ then, \S+ now\. Expected"):
        run(replace(job, resume=True), 10)


def test_other_settings(package: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job, 2)
    monkeypatch.setenv("SCALE", "3")
    with pytest.raises(InputError, match=r"another job: model \S+ then, \S+ now\. Expected"):
        run(replace(job, resume=True), 10)


def rewritten(picture: Path) -> None:
    """Write another picture with the same number of bytes."""
    data = picture.read_bytes()
    picture.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(picture, (2e9, 2e9))


@pytest.mark.parametrize(
    "change",
    [
        rewritten,
        lambda picture: os.truncate(picture, picture.stat().st_size + 1),
        lambda picture: picture.rename(picture.with_name("p5.png")),
        lambda picture: picture.rename(picture.parent / "b" / picture.name),
    ],
    ids=["rewritten", "longer", "renamed", "moved"],
)
def test_other_pictures(tmp_path: Path, change: Callable[[Path], object]) -> None:
    pictures = save_pictures(tmp_path / "in", 5)
    for picture in pictures:
        os.utime(picture, (1e9, 1e9))
    (tmp_path / "in" / "b").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("of no interest")
    job = Job(
        *("tests.helpers.factories:mlp", tmp_path / "in", tmp_path / "out.npy"),
        preprocess="tests.helpers.functions:corners",
        micro_batch=2,
    )
    run(job, 1)
    (tmp_path / "in" / "notes.txt").write_text("changed")
    run(replace(job, resume=True), 1)
    change(pictures[4])
    if change is not rewritten:
        for each in (tmp_path / "in").rglob("p?.png"):
            os.utime(each, (1e9, 1e9))
    with pytest.raises(InputError, match=r"another job: input \S+ then, \S+ now\. Expected"):
        run(replace(job, resume=True), 10)


def relabelled(job: Job) -> Job:
    assert job.labels is not None
    job.labels.write_text("1\n" * 11)
    return job


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (relabelled, r"labels \w+ then, \w+ now"),
        (lambda job: replace(job, labels=None), r"labels \w+ then, none now"),
        (lambda job: replace(job, task="image-classification"), "task .* then, image-class"),
    ],
    ids=["other labels", "no labels", "task"],
)
def test_other_options(
    rows: Path, tmp_path: Path, change: Callable[[Job], Job], named: str
) -> None:
    (tmp_path / "y.txt").write_text("0\n" * 11)
    job = Job(
        *("tests.helpers.factories:mlp", rows, tmp_path / "out.npy"),
        labels=tmp_path / "y.txt",
        micro_batch=2,
    )
    run(job, 2)
    with pytest.raises(InputError, match=rf"belongs to another job: {named}"):
        run(replace(change(job), resume=True), 10)


def test_other_lengths_of_texts(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert", "BertModel", layers=1)
    (tmp_path / "in.txt").write_text("the fox\n" * 5)
    job = Job(str(folder), tmp_path / "in.txt", tmp_path / "out.npy", micro_batch=2, max_length=9)
    run(job, 1)
    other = replace(job, resume=True, max_length=8, padding="max_length")
    with pytest.raises(InputError, match="max_length 9 then, 8 now; padding longest then, max"):
        run(other, 10)


def test_other_versions(package: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job, 2)
    monkeypatch.setattr("pipepar.jobs.output.identity.version", lambda package: "99")
    with pytest.raises(InputError, match=r"another job: versions pipepar .* torch 99"):
        run(replace(job, resume=True), 10)


def test_a_large_file_that_was_modified(tmp_path: Path) -> None:
    """Only parts of a large file are read."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    before = fingerprint(path)
    assert fingerprint(path) == before
    with path.open("r+b") as file:
        file.seek(300 << 10)
        file.write(b"x")
    assert fingerprint(path) != before
