"""When rows and their records reach the disk, and what becomes of a run where they do not."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import pytest

from pipepar.data.writers import journal
from pipepar.data.writers.journal import Journal, Record, read_journal
from pipepar.data.writers.open_output import RowWriter
from pipepar.data.writers.partial import Partial
from pipepar.errors import PipeparError
from tests.helpers.jobs.unfinished import BATCHES, HEADER, crash, fail, finish, opened, write

NEVER = 1e6


def reached(path: Path, records: int, seconds: float) -> bool:
    """Whether so many records are in the journal within that time."""
    deadline = time.monotonic() + seconds
    while len(list(read_journal(path)[1])) < records:
        if time.monotonic() > deadline:
            return False
        time.sleep(1e-3)
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "y.npy"


def test_the_first_micro_batch_is_safe_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PERIOD", NEVER)
    with opened(path) as writer:
        write(writer, BATCHES[:1])
        assert reached(path, 1, 20)
        write(writer, BATCHES[1:2])
        writer.suspend()
    assert finish(path) == 2


def test_a_crash_costs_a_second(path: Path) -> None:
    """Some more on a machine that is busy."""
    with opened(path) as writer:
        for number, batch in enumerate(BATCHES, 1):
            write(writer, [batch])
            if number in (1, 2):
                assert reached(path, number, 5), f"micro-batch {number} is not safe"
        writer.suspend()


def record(sample: int) -> Record:
    """Of one sample, whose row is of 48 bytes."""
    return Record(((sample, sample + 1),), ((48 * sample, 48 * sample + 48),), 0, None)


@contextmanager
def begun(path: Path) -> Iterator[Journal]:
    """A journal that has its first record."""
    partial = Partial(path)
    begun = Journal(partial, HEADER)
    begun.add(record(0))
    while not begun.has_records:
        time.sleep(1e-3)
    yield begun
    begun.close()
    partial.discard()


def test_many_bytes_are_safe_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PERIOD", NEVER)
    monkeypatch.setattr(journal, "_URGENT_BYTES", 80)
    with begun(path) as some:
        for first in (1, 3):
            some.add(record(first))
            assert not reached(path, first + 1, 0.1), "one row is not much"
            some.add(record(first + 1))
            assert reached(path, first + 2, 20), "two rows are"


class Slow(Record):
    """A record that is being added while others are committed, if that can be."""

    def to_json(self) -> str:
        text = super().to_json()
        time.sleep(0.3)
        return text


def test_a_record_that_comes_during_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is there once."""
    monkeypatch.setattr(journal, "_PERIOD", 0.01)
    with begun(path) as some:
        for sample in (1, 3, 5):
            some.add(record(sample))
            some.add(Slow(*astuple(record(sample + 1))))
    header, records = read_journal(path)
    assert header == HEADER
    assert [each.samples for each in records] == [[at] for at in range(7)]


def test_a_commit_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", full)
    path = tmp_path / "y.npy"
    with (
        pytest.raises(OSError, match="No space left") as caught,
        opened(path) as writer,
    ):
        write(writer, BATCHES)
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_rows_are_on_disk_before_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, steps = tmp_path / "y.npy", list[str]()
    sync, write_there = os.fdatasync, os.pwrite
    inodes: dict[int, str] = {}

    def name(file: int) -> str:
        inode = os.fstat(file).st_ino
        if inode not in inodes:
            inodes[inode] = "rows" if not inodes else "journal"
        return inodes[inode]

    def synced(file: int) -> None:
        steps.append(f"sync {name(file)}")
        sync(file)

    def written(file: int, data: memoryview, at: int) -> int:
        steps.append(f"write {name(file)}")
        return write_there(file, data, at)

    monkeypatch.setattr(os, "fdatasync", synced)
    monkeypatch.setattr(os, "pwrite", written)
    crash(path, 1)
    first = steps.index("write journal")
    assert "write rows" not in steps[first:]
    assert steps[first - 1] == "sync rows"


def stop(output: RowWriter, batches: list[list[int]]) -> None:
    with output as writer:
        writer.suspend()
        write(writer, batches)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no"), OSError(5, "no")], ids=repr)
def test_whatever_ends_the_thread_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """And nothing goes that could be resumed."""
    path = tmp_path / "y.npy"
    crash(path, 2)

    def dies(_: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", dies)
        with pytest.raises(type(error)):
            stop(opened(path, resume=True), BATCHES[2:])
    assert finish(path) == 2


def test_a_journal_that_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its name may not be on disk yet, and no more can be written."""

    def dies(_: Path) -> None:
        raise OSError(5, "no")

    path = tmp_path / "y.npy"
    with monkeypatch.context() as patch:
        patch.setattr("pipepar.data.writers.journal.sync_folder", dies)
        with pytest.raises(OSError, match="no"):
            fail(opened(path), BATCHES[:1])
    assert finish(path) == 3


def test_nothing_comes_after_the_end(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "y.npy")
    journal = Journal(partial, HEADER)
    journal.close()
    with pytest.raises(PipeparError, match=r"\.y\.npy\.journal is closed; expected no rows after"):
        journal.add(Record((), (), 0, None))
    partial.discard()
