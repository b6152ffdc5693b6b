"""Measured times on disk: valid files are read, invalid files are ignored."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import cut_table
from pipepar.planner.profile import measure_profile
from pipepar.planner.profile_cache import ProfileCache, Times
from tests.helpers.run_contexts import run_on_hosts

TIMES: Times = [0.25, None, 1e-7]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pipepar"


def graph_of(width: int = 4, rows: int = 2) -> Graph:
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4))
    return capture(model.eval(), (torch.zeros(rows, 4),), {})


def written(micro_batch: int = 8, times: Times = TIMES) -> ProfileCache:
    made = ProfileCache.of(graph_of(), "cpu, 1 thread")
    made.write(micro_batch, times)
    return made


def test_written_times_are_read(folder: Path) -> None:
    made = written()
    assert made.path.parent == folder
    assert [file.name for file in folder.iterdir()] == [made.path.name]
    assert made.read(8, 3) == TIMES
    assert ProfileCache.of(graph_of(), "cpu, 1 thread").read(8, 3) == TIMES


def test_a_missing_file_has_no_times() -> None:
    assert ProfileCache.of(graph_of(), "cpu, 1 thread").read(8, 3) is None


@pytest.mark.parametrize(("micro_batch", "operations"), [(4, 3), (80, 3), (8, 2), (8, 4)])
def test_times_of_other_sizes_are_missing(micro_batch: int, operations: int) -> None:
    assert written().read(micro_batch, operations) is None


def test_sizes_share_a_file_and_the_last_write_counts() -> None:
    made = written(8)
    made.write(16, [1.0, 2.0, 3.0])
    made.write(8, [4.0, None, None])
    assert made.read(8, 3) == [4.0, None, None]
    assert made.read(16, 3) == [1.0, 2.0, 3.0]


def test_the_rows_of_the_example_are_irrelevant() -> None:
    written()
    assert ProfileCache.of(graph_of(rows=5), "cpu, 1 thread").read(8, 3) == TIMES


def test_another_device_model_or_shape_has_its_own_file() -> None:
    made = written()
    longer = capture(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval(),
        (torch.zeros(2, 3, 4),),
        {},
    )
    assert longer.digest == graph_of().digest  # the digest does not contain the shape of the input
    others = [
        ProfileCache.of(graph_of(), "cpu, 2 threads"),
        ProfileCache.of(graph_of(8), "cpu, 1 thread"),
        ProfileCache.of(longer, "cpu, 1 thread"),
        ProfileCache.of(graph_of(), "cpu, 1 thread", work=2.0),
        ProfileCache.of(graph_of(), "cpu, 1 thread", weight_bytes=64),
    ]
    assert len({other.path for other in [made, *others]}) == 6
    for other in others:
        assert other.read(8, 3) is None


def test_another_version_has_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made = written()
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert ProfileCache.of(graph_of(), "cpu, 1 thread").path != made.path
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("version", 0), ("model", "another"), ("inputs", []), ("device", "cpu")),
        *(("torch", "1.0"), ("surplus", 1), ("seconds", [1.0]), ("seconds", None)),
    ],
)
def test_a_file_with_another_key_is_ignored(name: str, value: object) -> None:
    made = written()
    made.path.write_text(json.dumps(json.loads(made.path.read_text()) | {name: value}))
    assert made.read(8, 3) is None
    made.write(16, TIMES)  # the file is replaced
    assert made.read(16, 3) == TIMES
    assert made.read(8, 3) is None


@pytest.mark.parametrize(
    "times",
    [
        *("[-1.0, 1.0, 1.0]", "[0.0, 1.0, 1.0]", "[NaN, 1.0, 1.0]", "[Infinity, 1.0, 1.0]"),
        *('["1", 1.0, 1.0]', "[true, 1.0, 1.0]", "[[1.0], 1.0, 1.0]", "{}", "1.0", '"abc"', "null"),
    ],
)
def test_invalid_times_are_ignored(times: str) -> None:
    made = written()
    content = json.loads(made.path.read_text()) | {"seconds": {"8": "HERE", "16": [1.0, 1.0, 1.0]}}
    made.path.write_text(json.dumps(content).replace('"HERE"', times))
    assert made.read(8, 3) is None
    assert made.read(16, 3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"{}"])
def test_a_damaged_file_is_ignored(damage: bytes) -> None:
    made = written()
    made.path.write_bytes(damage)
    assert made.read(8, 3) is None
    made.write(8, TIMES)
    assert made.read(8, 3) == TIMES


def test_a_truncated_file_is_ignored() -> None:
    made = written()
    whole = made.path.read_bytes()
    for length in range(len(whole) - 2):
        made.path.write_bytes(whole[:length])
        assert made.read(8, 3) is None


def test_a_folder_with_the_name_of_the_file() -> None:
    made = ProfileCache.of(graph_of(), "cpu, 1 thread")
    made.path.mkdir(parents=True)
    assert made.read(8, 3) is None
    with pytest.raises(OSError, match="directory"):
        made.write(8, TIMES)


@pytest.mark.parametrize("variable", [None, "", "relative/cache"])
def test_the_default_folder_is_in_the_home_directory(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert written().path.parent == tmp_path / ".cache" / "pipepar"


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    made = written()
    assert made.path.parent == tmp_path / f"pipepar-{os.getuid()}"
    assert made.read(8, 3) == TIMES


def test_a_folder_that_cannot_be_created(folder: Path) -> None:
    folder.parent.write_text("not a folder")
    with pytest.raises(OSError, match="directory"):
        written()
    assert ProfileCache.of(graph_of(), "cpu, 1 thread").read(8, 3) is None


def profiled(
    graph: Graph, sizes: Iterable[int], note: Callable[[str], None], **options: Any
) -> None:
    run = run_on_hosts(World.start(), note)
    profile = measure_profile(run, graph, cut_table(graph), sizes, **options)
    assert profile.curve


def test_times_that_cannot_be_cached_are_noted_once(folder: Path) -> None:
    folder.parent.write_text("not a folder")
    notes: list[str] = []
    profiled(graph_of(), [1, 2], notes.append)
    (note,) = notes
    assert note.startswith(f"measured times cannot be cached in {folder}: ")
    assert note.endswith("directory") or note.endswith("exists")


def test_there_is_no_note_if_times_are_cached(folder: Path) -> None:
    notes: list[str] = []
    profiled(graph_of(), [1, 2], notes.append)
    assert notes == []
    (file,) = folder.iterdir()
    assert list(json.loads(file.read_text())["seconds"]) == ["1", "2"]
