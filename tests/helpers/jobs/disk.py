"""The states of a folder that a crash may leave, at every step of some work."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pytest

from pipepar.data.writers.partial import read_at

State: TypeAlias = frozenset[tuple[str, bytes]]
"""The files of a folder: names and contents."""
Change: TypeAlias = Mapping[str, int | None]
"""The new inode of each changed name, or None; a rename changes two names at once."""
T = TypeVar("T")


class Disk:
    """Records the states that a crash may leave of the files of a folder, without subfolders.

    After a crash of the host, each file has either all of its bytes or those that were synced. Each
    change of names since the last sync of the folder may be lost or not. After a crash of the
    process, nothing is lost.

    Attributes:
        states: the possible states after a crash, with the samples that were safe by then.
        safe: samples that a crash must not lose from now on.
    """

    def __init__(self, folder: Path, safe: Iterable[int] = ()) -> None:
        """Start; all files are taken to be synced."""
        self.states = dict[State, frozenset[int]]()
        self.safe = frozenset(safe)
        self._folder = folder
        self._lock = threading.RLock()
        self._files = dict[int, FileIO]()  # open, so that inode numbers are not reused
        self._bytes = dict[int, bytes]()
        self._names: dict[str, int] = {}
        self._changes: list[Change] = []
        self._scan()
        self._synced_bytes = dict(self._bytes)
        self._synced_names, self._changes = self._names, []

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Record the state after every write, rename, sync and unlink from now on."""
        for name in ("pwrite", "replace"):
            patch.setattr(os, name, self._recording(getattr(os, name), lambda *_: None))
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._recording(getattr(os, name), self._synced))
        patch.setattr(Path, "unlink", self._recording(Path.unlink, lambda *_, **__: None))

    def is_settled(self, samples: Iterable[int], found: Callable[[], Iterable[int]]) -> bool:
        """Return whether all is synced and `found` has the samples, which are safe from then on."""
        with self._lock:
            synced = (self._bytes[at] == self._synced_bytes.get(at) for at in self._names.values())
            settled = not self._changes and all(synced) and set(samples) <= set(found())
            if settled:
                self.safe |= set(samples)
                self._add_states()
            return settled

    def _recording(self, step: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def taken(*args: Any, **options: Any) -> Any:
            with self._lock:
                result = step(*args, **options)
                self._scan()
                note(*args, **options)
                self._add_states()
                return result

        return taken

    def _scan(self) -> None:
        files = (each for each in os.scandir(self._folder) if each.is_file())
        names = {file.name: file.inode() for file in files}
        both = self._names.keys() | names.keys()
        change = {at: names.get(at) for at in both if names.get(at) != self._names.get(at)}
        if change:
            self._changes.append(change)
        self._names = names
        for name, inode in names.items():
            file = self._files.setdefault(inode, FileIO(self._folder / name))
            self._bytes[inode] = read_at(file, 0, 1 << 20)

    def _synced(self, file: int) -> None:
        status = os.fstat(file)
        if not stat.S_ISDIR(status.st_mode):
            self._synced_bytes[status.st_ino] = self._bytes[status.st_ino]
        elif os.path.samestat(status, os.stat(self._folder)):
            self._synced_names, self._changes = self._names, []

    def _add_states(self) -> None:
        for steps in _parts(self._changes):
            names = dict[str, int | None](self._synced_names)
            for step in steps:
                names.update(step)
            there = {name: inode for name, inode in names.items() if inode is not None}
            for contents in itertools.product(*map(self._contents, there.values())):
                state = frozenset(zip(there, contents, strict=True))
                self.states[state] = self.states.get(state, frozenset()) | self.safe

    def _contents(self, inode: int) -> set[bytes]:
        return {self._bytes[inode], self._synced_bytes.get(inode, b"")}


def _parts(some: Sequence[T]) -> Iterator[tuple[T, ...]]:
    """Yield all subsequences of a sequence."""
    for size in range(len(some) + 1):
        yield from itertools.combinations(some, size)
