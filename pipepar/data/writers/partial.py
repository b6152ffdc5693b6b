"""A file that appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from pipepar.errors import InputError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP)


class Partial:
    """The hidden file ``.NAME.partial`` beside the final one, to be renamed to it.

    Its name is fixed, so that what a killed run left is resumed or overwritten by the next, not
    piled up. A lock keeps two runs from sharing it; where the file system has none, a run that
    begins anew makes a file of its own, and the other finds that out before it puts its own under
    the final name.

    Attributes:
        path: the final name.
        file: the partial, open for reading and writing; another one after `clear`.
    """

    def __init__(self, path: Path) -> None:
        """Open the partial, with what an earlier run has left in it.

        Args:
            path: the final name.

        Raises:
            InputError: another run writes to it.
            OSError: the folder cannot be written to.
        """
        self.path = path
        self._hidden = partial_of(path)
        self.file = _opened(self._hidden, os.O_CREAT)
        try:
            self._locked = _lock(self.file)
            # The run that had the lock may have renamed the file between our open and our lock.
            own = self.is_own
        except BlockingIOError:
            own = False
        if not own:
            self.file.close()
            raise InputError(
                f"output {path} is being written by another run, which holds {self._hidden}; "
                "expected one run an output. Choose another output, or wait for that run's end."
            )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return os.fstat(self.file.fileno()).st_size == 0

    @property
    def is_own(self) -> bool:
        """Whether its name still stands for the file that this run has open."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self._hidden))
        except FileNotFoundError:
            return False

    def require_own(self) -> None:
        """See that nobody took the place of this run's file, as may happen without locks.

        Raises:
            InputError: somebody did.
        """
        if not self.is_own:
            raise InputError(
                f"output {self.path}: {self._hidden} is gone or another file than the one that "
                "this run began; expected one run an output. See whether another run writes to it, "
                "and run again, or choose another output."
            )

    def clear(self) -> None:
        """Begin anew with nothing in it.

        Raises:
            OSError: the file system refuses.
        """
        if self._locked:
            self.file.truncate(0)
            return
        # Another run may be writing to this file: it then finds that the name is not its own.
        self.file.close()
        self._hidden.unlink(missing_ok=True)
        self.file = _opened(self._hidden, os.O_CREAT | os.O_EXCL)

    def commit(self) -> None:
        """Put the file under its final name, safe against a crash of the host, and close it.

        Raises:
            InputError: it is not this run's any more.
            OSError: see `put_under`.
        """
        self.require_own()
        put_under(self.file, self._hidden, self.path)
        self.file.close()

    def keep(self) -> None:
        """Leave the partial to another run, unless it is empty; may be called twice."""
        if not self.file.closed and self.is_empty:
            self.discard()
        self.file.close()

    def discard(self) -> None:
        """Remove the partial, unless it is committed or kept already; may be called twice."""
        if not self.file.closed and self.is_own:
            self._hidden.unlink()
        self.file.close()


def partial_of(path: Path) -> Path:
    """The partial's name beside an output file."""
    return path.with_name(f".{path.name}.partial")


def _opened(path: Path, flags: int) -> FileIO:
    # Unbuffered: a full disk shows where something is written, not again at every close.
    return FileIO(os.open(path, os.O_RDWR | flags, 0o666), "r+")


def _lock(file: FileIO) -> bool:
    """Keep other runs from a file; whether its file system has locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def put_under(file: FileIO, hidden: Path, path: Path) -> None:
    """Rename a complete file, safe against a crash of the host.

    Args:
        file: the file, open.
        hidden: its name so far.
        path: its final name, in the same folder.

    Raises:
        OSError: the file system refuses. What was under the final name is there still, or, where
            only the folder could not be synced, the file is, and may not outlast a crash.
    """
    os.fsync(file.fileno())
    os.replace(hidden, path)
    sync_folder(path.parent)


def write_at(file: FileIO, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of the data.

    Args:
        file: open for writing.
        data: bytes.
        offset: bytes from the file's start.

    Raises:
        OSError: the file system refuses. A memory map would not say so: a full disk is a signal
            there, and kills the process.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def read_at(file: FileIO, offset: int, size: int) -> bytes:
    """The bytes that lie there, all that there are of them.

    Args:
        file: open for reading.
        offset: bytes from the file's start.
        size: how many are wanted; fewer come where the file ends before.

    Raises:
        OSError: the file cannot be read.
    """
    data = bytearray()
    while len(data) < size:
        more = os.pread(file.fileno(), size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return bytes(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError that lacks one, such as that of a full disk.

    Args:
        path: the file being worked on.

    Raises:
        OSError: what was raised inside, with a file name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make sure that a folder's names are on disk, where the file system can."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
