"""When rows and their records are synced, and how a run fails if that is not possible."""

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
    """Return whether the journal has the number of records before the timeout."""
    deadline = time.monotonic() + seconds
    while len(list(read_journal(path)[1])) < records:
        if time.monotonic() > deadline:
            return False
        time.sleep(1e-3)
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "y.npy"


def test_the_first_micro_batch_is_committed_immediately(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_PERIOD", NEVER)
    with opened(path) as writer:
        write(writer, BATCHES[:1])
        assert reached(path, 1, 20)
        write(writer, BATCHES[1:2])
        writer.suspend()
    assert finish(path) == 2


def test_a_crash_loses_about_a_second(path: Path) -> None:
    """The limit is 5 s, since the machine may be busy."""
    with opened(path) as writer:
        for number, batch in enumerate(BATCHES, 1):
            write(writer, [batch])
            if number in (1, 2):
                assert reached(path, number, 5), f"micro-batch {number} is not safe"
        writer.suspend()


def record(sample: int) -> Record:
    """Return the record of one sample with a row of 48 bytes."""
    return Record(((sample, sample + 1),), ((48 * sample, 48 * sample + 48),), 0, None)


@contextmanager
def journal_with_a_record(path: Path) -> Iterator[Journal]:
    """Yield a journal whose first record is on disk."""
    partial = Partial(path)
    journal = Journal(partial, HEADER)
    journal.add(record(0))
    while not journal.has_records:
        time.sleep(1e-3)
    yield journal
    journal.close()
    partial.discard()


def test_many_bytes_are_committed_immediately(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_PERIOD", NEVER)
    monkeypatch.setattr(journal, "_URGENT_BYTES", 80)
    with journal_with_a_record(path) as some:
        for first in (1, 3):
            some.add(record(first))
            assert not reached(path, first + 1, 0.1), "one row is below the limit"
            some.add(record(first + 1))
            assert reached(path, first + 2, 20), "two rows are above the limit"


class Slow(Record):
    """A record whose conversion to JSON is slow, so that commits happen meanwhile."""

    def to_json(self) -> str:
        text = super().to_json()
        time.sleep(0.3)
        return text


def test_a_record_added_during_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is in the journal once."""
    monkeypatch.setattr(journal, "_PERIOD", 0.01)
    with journal_with_a_record(path) as some:
        for sample in (1, 3, 5):
            some.add(record(sample))
            some.add(Slow(*astuple(record(sample + 1))))
    header, records = read_journal(path)
    assert header == HEADER
    assert [each.samples for each in records] == [[at] for at in range(7)]


def test_a_failing_commit_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_rows_are_synced_before_their_record(
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
def test_an_exception_of_the_thread_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The output can still be resumed."""
    path = tmp_path / "y.npy"
    crash(path, 2)

    def dies(_: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", dies)
        with pytest.raises(type(error)):
            stop(opened(path, resume=True), BATCHES[2:])
    assert finish(path) == 2


def test_an_existing_journal_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its folder cannot be synced, and no more records can be written."""

    def dies(_: Path) -> None:
        raise OSError(5, "no")

    path = tmp_path / "y.npy"
    with monkeypatch.context() as patch:
        patch.setattr("pipepar.data.writers.journal.sync_folder", dies)
        with pytest.raises(OSError, match="no"):
            fail(opened(path), BATCHES[:1])
    assert finish(path) == 3


def test_a_closed_journal_refuses_records(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "y.npy")
    journal = Journal(partial, HEADER)
    journal.close()
    with pytest.raises(PipeparError, match=r"\.y\.npy\.journal is closed; expected no rows after"):
        journal.add(Record((), (), 0, None))
    partial.discard()
