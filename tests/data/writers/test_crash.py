"""A crash at any moment: a resumed run writes the output of an uninterrupted run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipepar.data.writers import journal
from pipepar.data.writers.journal import journal_of, read_journal
from pipepar.data.writers.open_output import RowWriter, open_output
from pipepar.data.writers.partial import Partial, partial_of
from pipepar.data.writers.unfinished import Resumable, Unfinished, find_unfinished
from tests.helpers.jobs.disk import Disk
from tests.helpers.jobs.unfinished import BATCHES, ROWS, SUFFIXES

ONE, OTHER = {"sign": 1}, {"sign": -1}


def opened(path: Path, header: Mapping[str, Any] = ONE) -> RowWriter:
    """Return a writer that resumes the unfinished output of any job, or starts the given job."""
    partial = Partial(path)
    left = find_unfinished(partial)
    return open_output(path, 11, Resumable(partial, left.header if left else header, left))


def write(writer: RowWriter, sign: int, batches: list[list[int]]) -> Iterator[list[int]]:
    """Write the rows that are not done; yield each micro-batch that is done."""
    for batch in batches:
        if not writer.done.contains_microbatch(batch):
            writer.write(torch.tensor(batch), {"y": sign * ROWS[batch]})
        yield batch


def whole(path: Path, sign: int) -> bytes:
    with open_output(path, 11) as writer:
        list(write(writer, sign, BATCHES))
    return path.read_bytes()


def leave(path: Path, sign: int) -> None:
    """Leave an output with two micro-batches of a job."""
    with opened(path, {"sign": sign}) as writer:
        list(write(writer, sign, BATCHES[:2]))
        writer.suspend()


def leave_damaged(path: Path) -> None:
    """Leave an output of which the second micro-batch is damaged."""
    leave(path, 1)
    with partial_of(path).open("r+b") as file:
        file.seek(-6, os.SEEK_END)
        file.write(b"\xff\xfe")


def found(partial: Partial) -> Iterator[int]:
    """Yield the samples of valid records."""
    for record, _ in Unfinished(ONE, partial, renamed=False).valid_records():
        yield from record.samples


def check(path: Path, state: Mapping[str, bytes], safe: set[int], wanted: dict[int, bytes]) -> None:
    """Resume, and check that no safe sample is lost and that the output is complete."""
    for name, data in state.items():
        (path.parent / name).write_bytes(data)
    was = state.get(path.name)
    assert was in (None, *wanted.values())
    header, _ = read_journal(path)
    sign = header["sign"] if header else 1
    with opened(path) as writer:
        # In the complete file, lines have other offsets than in the journal.
        has_rows = path.suffix != ".jsonl" or partial_of(path).name in state
        if header and was == wanted[sign] and has_rows:
            assert writer.done.missing == 0
        if was != wanted[1]:
            assert not safe or sign == 1
            lost = [sample for sample in sorted(safe) if sample not in writer.done]
            assert not lost, f"samples {lost} were safe, and are lost with {sorted(state)}"
        list(write(writer, sign, BATCHES))
    assert path.read_bytes() == wanted[sign]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", ["fresh", "resumed", "overwriting"])
def test_a_crash_at_every_step(
    tmp_path: Path, suffix: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("whole", "run"):
        (tmp_path / folder).mkdir()
    name = f"y.{suffix}"
    path = tmp_path / "run" / name
    wanted = {sign: whole(tmp_path / "whole" / name, sign) for sign in (1, -1)}
    if mode == "resumed":
        leave_damaged(path)
    elif mode == "overwriting":
        leave(path, -1)
    monkeypatch.setattr(journal, "_URGENT_BYTES", 0)  # a commit for every micro-batch
    disk = Disk(path.parent, BATCHES[0] if mode == "resumed" else ())
    with monkeypatch.context() as patch:
        disk.watch(patch)
        partial = Partial(path)
        left = find_unfinished(partial) if mode == "resumed" else None
        with open_output(path, 11, Resumable(partial, ONE, left)) as writer:
            for batch in write(writer, 1, BATCHES):
                deadline = time.monotonic() + 20
                while not disk.is_settled(batch, lambda: found(partial)):
                    assert time.monotonic() < deadline, f"{batch} is not safe yet"
                    time.sleep(1e-3)
    assert disk.safe == set(range(11))
    assert path.read_bytes() == wanted[1]
    assert not journal_of(path).exists()
    assert len(disk.states) > 10
    for number, (state, safe) in enumerate(disk.states.items()):
        copy = tmp_path / str(number)
        copy.mkdir()
        check(copy / name, dict(state), set(safe), wanted)
