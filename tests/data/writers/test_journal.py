"""Resumed outputs: with any damage to the journal, each sample is written once."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipepar.data.sample_set import consecutive_parts
from pipepar.data.writers.journal import Record, journal_of, read_journal
from pipepar.data.writers.open_output import open_output
from pipepar.data.writers.partial import Partial, partial_of
from pipepar.data.writers.unfinished import find_unfinished, is_unfinished
from pipepar.errors import InputError
from tests.helpers.jobs.unfinished import (
    BATCHES,
    HEADER,
    SUFFIXES,
    Crash,
    crash,
    fail,
    finish,
    opened,
    write,
)


@pytest.fixture(scope="module", params=SUFFIXES)
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a run that failed after three micro-batches."""
    path = tmp_path_factory.mktemp("left") / f"y.{request.param}"
    crash(path, 3)
    return path


@pytest.fixture(scope="module")
def uninterrupted(left: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / left.name
    with open_output(path, 11) as writer:
        write(writer, BATCHES)
    return path.read_bytes()


@contextmanager
def copied(left: Path) -> Iterator[Path]:
    """Yield a copy of an unfinished output."""
    folder = left.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in (journal_of(left), partial_of(left)):
        shutil.copy(file, folder)
    yield folder / left.name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("batches", range(5))
def test_a_resumed_output_equals_that_of_an_uninterrupted_run(
    tmp_path: Path, suffix: str, batches: int
) -> None:
    path, whole = tmp_path / f"y.{suffix}", tmp_path / f"whole.{suffix}"
    crash(path, batches)
    assert not path.exists()
    assert is_unfinished(path) == (batches > 0)
    assert finish(path) == len(BATCHES) - batches
    with open_output(whole, 11) as writer:
        write(writer, BATCHES)
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, whole.name])


def test_resumed_again_and_again(left: Path, uninterrupted: bytes) -> None:
    with copied(left) as path:
        for _ in range(3):
            with pytest.raises(Crash):
                fail(opened(path, resume=True), [])
        assert finish(path) == 1
        assert path.read_bytes() == uninterrupted


def test_an_output_without_rows_is_not_resumed(tmp_path: Path) -> None:
    crash(tmp_path / "y.npy", 0)
    assert os.listdir(tmp_path) == []


def test_a_suspended_output_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    with opened(path) as writer:
        write(writer, BATCHES[:2])
        writer.suspend()
    assert not path.exists()
    assert finish(path) == 2


@given(data=st.data())
def test_a_truncated_journal(left: Path, uninterrupted: bytes, data: st.DataObject) -> None:
    whole = journal_of(left).read_bytes()
    end = data.draw(st.integers(0, len(whole)))
    with copied(left) as path:
        journal_of(path).write_bytes(whole[:end])
        assert finish(path) >= 1
        assert path.read_bytes() == uninterrupted


@given(data=st.data())
def test_a_journal_with_a_byte_changed(
    left: Path, uninterrupted: bytes, data: st.DataObject
) -> None:
    whole = bytearray(journal_of(left).read_bytes())
    at = data.draw(st.integers(whole.index(b"\n") + 1, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with copied(left) as path:
        journal_of(path).write_bytes(whole)
        assert 1 <= finish(path) <= 3
        assert path.read_bytes() == uninterrupted


@given(data=st.data())
def test_rows_with_a_byte_changed_or_truncated(
    left: Path, uninterrupted: bytes, data: st.DataObject
) -> None:
    whole = bytearray(partial_of(left).read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    whole[at] ^= 1
    with copied(left) as path:
        partial_of(path).write_bytes(whole[:at] if cut else whole)
        finish(path)
        assert path.read_bytes() == uninterrupted


def test_a_damaged_header_is_refused(left: Path) -> None:
    with copied(left) as path:
        journal_of(path).write_bytes(b"x" + journal_of(path).read_bytes())
        with pytest.raises(InputError, match=r"found 3 records without a header.*--resume"):
            find_unfinished(Partial(path))


def test_content_of_the_journal(left: Path) -> None:
    header, records = read_journal(left)
    assert header == HEADER
    assert [(record.samples, record.note) for record in records] == [
        (batch, batch[0]) for batch in BATCHES[:3]
    ]


def test_duplicate_records_are_restored_once(left: Path, uninterrupted: bytes) -> None:
    with copied(left) as path:
        lines = journal_of(path).read_bytes().splitlines(keepends=True)
        journal_of(path).write_bytes(b"".join([*lines, *lines[1:]]))
        assert finish(path) == 1
        assert path.read_bytes() == uninterrupted


def test_without_resuming_everything_is_repeated(left: Path, uninterrupted: bytes) -> None:
    with copied(left) as path:
        with opened(path) as writer:
            assert not journal_of(path).exists()
            write(writer, BATCHES)
        assert path.read_bytes() == uninterrupted


def test_rows_of_another_shape_than_before(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    crash(path, 2)
    odd = r"row of shape \(2,\) .* in 'y'; expected shape \(4,\)"
    with pytest.raises(InputError, match=odd), opened(path, resume=True) as writer:
        writer.write(torch.tensor([6]), {"y": torch.ones(1, 2)})
    assert finish(path) == 2


@given(st.lists(st.integers(0, 30), min_size=1, unique=True))
def test_a_record_is_read_unchanged(samples: list[int]) -> None:
    their = tuple((samples[a], samples[b - 1] + 1) for a, b in consecutive_parts(samples))
    record = Record(their, ((0, 3), (9, 12)), 2**32 - 1, 5, {"a": [1]})
    assert Record.from_json(record.to_json()) == record
    assert record.samples == samples


def test_a_resumed_jsonl_requires_the_same_names(tmp_path: Path) -> None:
    path = tmp_path / "y.jsonl"
    crash(path, 2)
    with (
        pytest.raises(InputError, match=r"found the values 'z'; expected 'y' again"),
        opened(path, resume=True) as writer,
    ):
        writer.write(torch.tensor([6]), {"z": torch.ones(1, 4)})
    assert finish(path) == 2


def test_lines_between_repeated_lines(tmp_path: Path) -> None:
    """Lines of consecutive samples are not contiguous in the file of the earlier run."""
    path, value = tmp_path / "y.jsonl", torch.arange(6.0)
    order = [[0, 1], [4, 5], [2, 3]]
    with opened(path) as writer:
        for batch in order:
            writer.write(torch.tensor(batch), {"y": value[batch]})
        writer.suspend()
    with partial_of(path).open("r+b") as file:
        file.seek(len('{"y": 0.0}\n') * 2)
        file.write(b"x")  # in the line of sample 4
    with opened(path, resume=True) as writer:
        assert [batch for batch in order if not writer.done.contains_microbatch(batch)] == [[4, 5]]
        writer.write(torch.tensor([4, 5]), {"y": value[4:]})
        writer.write(torch.arange(6, 11), {"y": torch.zeros(5)})
    lines = [f'{{"y": {at}.0}}' for at in range(6)] + ['{"y": 0.0}'] * 5
    assert path.read_text().splitlines() == lines
