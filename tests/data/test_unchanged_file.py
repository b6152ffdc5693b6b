"""Inputs that change while they are read."""

import os
from pathlib import Path

import pytest

from pipepar.data.unchanged_file import UnchangedFile
from pipepar.errors import InputError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("a\nb\n")
    return path


def test_reading_is_no_change(file: Path) -> None:
    unchanged = UnchangedFile(file)
    os.utime(file, ns=(0, file.stat().st_mtime_ns))
    assert file.read_text() == "a\nb\n"
    unchanged.check()


def test_another_size(file: Path) -> None:
    unchanged = UnchangedFile(file)
    os.truncate(file, 3)
    with pytest.raises(InputError, match="has 3 bytes now; expected 4, as when"):
        unchanged.check()


def test_written_over(file: Path) -> None:
    os.utime(file, (1, 1))  # not in this tick of the kernel's clock
    unchanged = UnchangedFile(file)
    file.write_text("A\nb\n")
    with pytest.raises(InputError, match=r"in\.txt was written to after it was opened"):
        unchanged.check()


def test_gone(file: Path) -> None:
    unchanged = UnchangedFile(file)
    file.unlink()
    with pytest.raises(InputError, match="is gone, No such file"):
        unchanged.check()
