from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipepar.data.writers.open_output import check_output_path, open_output
from pipepar.data.writers.partial import Partial
from pipepar.errors import InputError, PipeparError


def write_one(path: Path) -> None:
    with open_output(path, 1) as writer:
        writer.write(torch.tensor([0]), {"y": torch.ones(1)})


def test_one_run_per_output(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    with open_output(path, 1) as writer:
        with pytest.raises(InputError, match="written by another run"), open_output(path, 1):
            pass
        with pytest.raises(InputError, match=r"which holds .*\.y\.npy\.partial; expected one run"):
            Partial(path)
        writer.write(torch.tensor([0]), {"y": torch.ones(1)})
    assert np.load(path).tolist() == [1.0]


def test_the_file_of_a_killed_run_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".y.jsonl.partial").write_text("left over" * 1000)
    write_one(tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").read_text() == '{"y": 1.0}\n'
    assert os.listdir(tmp_path) == ["y.jsonl"]


def test_the_mode_of_the_file_follows_the_umask(tmp_path: Path) -> None:
    write_one(tmp_path / "y.npy")
    (tmp_path / "plain").touch()
    assert (tmp_path / "y.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writing_outside_the_context_is_refused(tmp_path: Path) -> None:
    writer = open_output(tmp_path / "y.npy", 1)
    assert os.listdir(tmp_path) == []
    with pytest.raises(PipeparError, match="is not open"):
        writer.write(torch.tensor([0]), {"y": torch.ones(1)})


@pytest.mark.parametrize("check", [check_output_path, lambda path: open_output(path, 1)])
def test_output_is_checked_before_the_work(tmp_path: Path, check: object) -> None:
    assert callable(check)
    (tmp_path / "folder.npy").mkdir()
    for name, match in {
        "y.csv": r"'\.csv'; expected one of \.npy, \.safetensors, \.jsonl",
        "folder.npy": "is a directory",
        "missing/y.npy": r"does not exist.*mkdir -p",
    }.items():
        with pytest.raises(InputError, match=match):
            check(tmp_path / name)
    (tmp_path / "y.npy").touch()
    check(tmp_path / "y.npy")


def test_output_folder_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # chmod has no effect for root, as which tests may run.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match="may not write to the folder"):
        check_output_path(tmp_path / "y.npy")


def test_the_target_of_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    link, file = tmp_path / "y.jsonl", tmp_path / "scratch" / "rows"
    link.symlink_to("scratch/rows")
    for _ in range(2):  # without the target file, and with it
        write_one(link)
        assert link.is_symlink()
        assert file.read_text() == '{"y": 1.0}\n'
    assert os.listdir(tmp_path / "scratch") == ["rows"]


def test_a_link_into_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "y.npy").symlink_to("missing/y.npy")
    with pytest.raises(InputError, match=r"the folder .*/missing does not exist"):
        check_output_path(tmp_path / "y.npy")


def test_names_that_are_too_long_for_the_hidden_files(tmp_path: Path) -> None:
    most = os.pathconf(tmp_path, "PC_NAME_MAX") - 22
    longest = tmp_path / ("\u00e9" * ((most - 4) // 2) + "x" * (most % 2) + ".npy")
    assert len(os.fsencode(longest.name)) == most
    write_one(longest)
    with pytest.raises(InputError, match=rf"has {most + 1} bytes; expected at most {most}, since"):
        check_output_path(longest.with_name(f"x{longest.name}"))
