"""A crash at any moment: what is then on the disk is gone on with, and ends as it would have."""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch

from pipepar.data import journal
from pipepar.data.journal import journal_of, read_journal
from pipepar.data.partial import Partial, partial_of, read_at
from pipepar.data.unfinished import Resumable, find_unfinished
from pipepar.data.writers import Writer, open_output
from tests.helpers.unfinished import BATCHES, ROWS, SUFFIXES

State = Mapping[str, bytes]
ONE, OTHER = {"sign": 1}, {"sign": -1}


class Disk:
    """What of a folder is there after a crash, for every moment of some work.

    Where a process is killed that is all of it; where the host goes down, of names and of bytes it
    may be all or only what was synced.
    """

    def __init__(self, folder: Path) -> None:
        self.states = set[frozenset[tuple[str, bytes]]]()
        self._folder = folder
        self._lock = threading.RLock()
        self._files = dict[int, FileIO]()  # open, so that no inode's number is used twice
        self._bytes = dict[int, bytes]()
        self._look()
        self._synced_names, self._synced_bytes = self._names, dict(self._bytes)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Look after every step of what is done from now on."""
        for name in ("pwrite", "replace"):
            patch.setattr(os, name, self._then(getattr(os, name), lambda *_: None))
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._then(getattr(os, name), self._synced))
        patch.setattr(Path, "unlink", self._then(Path.unlink, lambda *_, **__: None))

    def _then(self, step: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def taken(*args: Any, **options: Any) -> Any:
            with self._lock:
                result = step(*args, **options)
                self._look()
                note(*args, **options)
                self._add_states()
                return result

        return taken

    def _look(self) -> None:
        self._names = {each.name: each.inode() for each in os.scandir(self._folder)}
        for name, inode in self._names.items():
            file = self._files.setdefault(inode, FileIO(self._folder / name))
            self._bytes[inode] = read_at(file, 0, 1 << 20)

    def _synced(self, file: int) -> None:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            self._synced_names = self._names
        else:
            self._synced_bytes[status.st_ino] = self._bytes[status.st_ino]

    def _add_states(self) -> None:
        for names, content in itertools.product(
            (self._names, self._synced_names), (self._bytes, self._synced_bytes)
        ):
            self.states.add(frozenset((name, content.get(at, b"")) for name, at in names.items()))


def begun(path: Path, header: Mapping[str, Any] = ONE) -> Writer:
    """Of a job, or what is left of whichever job that was."""
    partial = Partial(path)
    left = find_unfinished(partial)
    return open_output(path, 11, Resumable(partial, left.header if left else header, left))


def write(writer: Writer, sign: int, batches: list[list[int]], wait: bool = False) -> None:
    """The rows that are still to do; wait until each is in the journal."""
    for number, batch in enumerate(batches, 1):
        if not writer.done.holds(batch):
            writer.write(torch.tensor(batch), {"y": sign * ROWS[batch]})
        deadline = time.monotonic() + 30
        while wait and len(list(read_journal(writer.path)[1])) < number:
            assert time.monotonic() < deadline
            time.sleep(1e-4)


def whole(path: Path, sign: int) -> bytes:
    with open_output(path, 11) as writer:
        write(writer, sign, BATCHES)
    return path.read_bytes()


def leave(path: Path, sign: int) -> None:
    """What two micro-batches of a job have left."""
    with begun(path, {"sign": sign}) as writer:
        write(writer, sign, BATCHES[:2])
        writer.suspend()


def leave_damaged(path: Path) -> None:
    """The same, but one of them is to be done again."""
    leave(path, 1)
    with partial_of(path).open("r+b") as file:
        file.seek(-6, os.SEEK_END)
        file.write(b"\xff\xfe")


def check(path: Path, state: State, wanted: Mapping[int, bytes]) -> None:
    for name, data in state.items():
        (path.parent / name).write_bytes(data)
    was = state.get(path.name)
    assert was in (None, *wanted.values())
    header, _ = read_journal(path)
    sign = header["sign"] if header else 1
    with begun(path) as writer:
        if header and was == wanted[sign]:
            assert writer.done.missing == 0
        write(writer, sign, BATCHES)
    assert path.read_bytes() == wanted[sign]
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", ["fresh", "resumed", "overwriting"])
def test_every_moment(
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
    monkeypatch.setattr(journal, "_MUCH", 0)  # a commit for every micro-batch
    disk = Disk(path.parent)
    with monkeypatch.context() as patch:
        disk.watch(patch)
        partial = Partial(path)
        left = find_unfinished(partial) if mode == "resumed" else None
        with open_output(path, 11, Resumable(partial, ONE, left)) as writer:
            write(writer, 1, BATCHES, wait=mode != "resumed")
    assert path.read_bytes() == wanted[1]
    assert not journal_of(path).exists()
    assert len(disk.states) > 10
    for number, state in enumerate(disk.states):
        copy = tmp_path / str(number)
        copy.mkdir()
        check(copy / name, dict(state), wanted)
