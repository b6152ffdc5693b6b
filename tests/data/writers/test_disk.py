"""Outputs on full disks, and short reads and writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from pipepar.data.writers.open_output import open_output
from pipepar.data.writers.partial import partial_of
from pipepar.errors import InputError
from tests.helpers.jobs.outputs import SUFFIXES, only, read, write


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_oserror_with_the_path(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    path = tmp_path / f"y.{suffix}"
    with pytest.raises(OSError, match="No space left") as caught:
        write(path, {"y": torch.ones(4)}, [range(4)])
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.ENOSPC
    assert only(tmp_path)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:7], at))
    value = torch.randn(9, 5)
    for suffix in SUFFIXES:
        write(tmp_path / f"y.{suffix}", {"y": value}, [range(5, 9), range(5)])
        assert torch.equal(read(tmp_path / f"y.{suffix}")["y"], value)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: whole(file, min(size, 7), at))
    value = torch.randn(9, 5)
    write(tmp_path / "y.jsonl", {"y": value}, [range(5, 9), range(5)])
    assert torch.equal(read(tmp_path / "y.jsonl")["y"], value)


def write_and_cut(path: Path) -> None:
    with open_output(path, 2) as writer:
        writer.write(torch.tensor([1, 0]), {"y": torch.ones(2)})
        os.truncate(partial_of(path), 20)


def test_missing_lines_are_detected(tmp_path: Path) -> None:
    missed = r"found 9 bytes of lines at 11 in .*\.y\.jsonl\.partial; expected the 11 that were"
    with pytest.raises(InputError, match=missed):
        write_and_cut(tmp_path / "y.jsonl")
    assert only(tmp_path)
