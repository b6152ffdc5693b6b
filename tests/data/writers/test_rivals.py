"""Two runs on one output, and leftovers of earlier runs."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipepar.data.writers.journal import Record, journal_of, read_journal
from pipepar.data.writers.open_output import RowWriter, open_output
from pipepar.data.writers.partial import Partial
from pipepar.data.writers.unfinished import Resumable, find_unfinished
from pipepar.errors import InputError
from tests.helpers.jobs.unfinished import (
    BATCHES,
    HEADER,
    ROWS,
    SUFFIXES,
    Crash,
    crash,
    fail,
    finish,
    opened,
    write,
)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", lacks)


def await_journal(path: Path, records: int) -> None:
    deadline = time.monotonic() + 30
    while len(list(read_journal(path)[1])) < records:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def overtaken(path: Path, later: RowWriter) -> None:
    """Start a run, and continue it after another run has started."""
    with opened(path) as first:
        write(first, BATCHES[:1])
        await_journal(path, 1)
        later.__enter__()
        later.write(torch.tensor(BATCHES[0]), {"y": -ROWS[BATCHES[0]]})
        await_journal(path, 1)
        write(first, BATCHES[1:])


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_locks_the_later_run_wins(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"y.{suffix}", tmp_path / f"whole.{suffix}"
    later = opened(path)
    with pytest.raises(InputError, match=r"\.partial is gone or is not the file that"):
        overtaken(path, later)
    assert not path.exists()
    for batch in BATCHES[1:]:
        later.write(torch.tensor(batch), {"y": -ROWS[batch]})
    later.__exit__(None, None, None)
    with open_output(whole, 11) as writer:
        writer.write(torch.arange(11), {"y": -ROWS})
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, whole.name])


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_locks_and_without_a_journal(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"y.{suffix}"
    first = open_output(path, 11).__enter__()
    write(first, BATCHES)
    with open_output(path, 11) as later:
        with pytest.raises(InputError, match="expected one run per output"):
            first.__exit__(None, None, None)
        write(later, BATCHES)
    assert os.listdir(tmp_path) == [path.name]


def test_restoring_reports_progress(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    crash(path, 3)
    calls = list[int]()
    partial = Partial(path)
    left = find_unfinished(partial)
    assert left is not None
    left = replace(left, progress=lambda: calls.append(1))
    with open_output(path, 11, Resumable(partial, HEADER, left)) as writer:
        assert len(calls) == 3
        writer.suspend()


def test_records_of_consecutive_samples_are_small() -> None:
    tracemalloc.start()
    record = Record.from_json("[[[0, 1000000]], [[0, 4000000]], 1, null, null]")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert len(record.samples) == 1_000_000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_partial_file_is_not_resumed(tmp_path: Path, suffix: str) -> None:
    """The journal then refers to rows that do not exist."""
    path = tmp_path / f"y.{suffix}"
    crash(path, 2)
    os.truncate(path.with_name(f".{path.name}.partial"), 0)
    path.write_bytes(b"something else")
    assert finish(path) == 4
    assert not journal_of(path).exists()


@pytest.mark.usefixtures("no_locks")
def test_an_overtaken_run_keeps_the_journal_of_the_other(tmp_path: Path) -> None:
    """The first run had not written rows before."""
    path = tmp_path / "y.npy"
    first, later = opened(path).__enter__(), opened(path).__enter__()
    write(later, BATCHES[:1])
    await_journal(path, 1)
    left = journal_of(path).read_bytes()
    write(first, BATCHES[1:2])
    with pytest.raises(InputError, match="expected one run per output"):
        first.__exit__(None, None, None)
    assert journal_of(path).read_bytes() == left
    later.suspend()
    later.__exit__(None, None, None)
    assert finish(path) == 3


def test_a_run_that_fails_after_all_rows_were_restored(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    crash(path, 4)
    path.with_name(f".{path.name}.partial").rename(path)
    with pytest.raises(Crash):
        fail(opened(path, resume=True), [])
    assert journal_of(path).exists()
    assert finish(path) == 0
    assert os.listdir(tmp_path) == [path.name]
