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
    """The hidden file ``.NAME.partial`` beside the final one, to be renamed to it. Local.

    Its name is fixed, so that what a killed run left is overwritten by the next, not piled up; a
    lock keeps two runs from sharing it, where the file system has locks.
    """

    def __init__(self, path: Path) -> None:
        """Open the partial, empty.

        Args:
            path: the final name.

        Raises:
            InputError: another run writes to it.
            OSError: the folder cannot be written to.
        """
        self._path = path
        self._hidden = path.with_name(f".{path.name}.partial")
        # Unbuffered: a full disk shows where something is written, not again at every close.
        self.file = FileIO(os.open(self._hidden, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        if not self._lock():
            self.file.close()
            raise InputError(
                f"output {path} is being written by another run, which holds {self._hidden}; "
                "expected one run an output. Choose another output, or wait for that run's end."
            )
        self.file.truncate()

    def commit(self) -> None:
        """Put the file under its final name, safe against a crash of the host, and close it.

        Raises:
            OSError: the file system refuses; nothing has then changed under the final name.
        """
        os.fsync(self.file.fileno())
        os.replace(self._hidden, self._path)
        self.file.close()
        _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove the partial, unless it is committed already; may be called twice."""
        if not self.file.closed:
            self._hidden.unlink(missing_ok=True)
            self.file.close()

    def _lock(self) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        # The run that had the lock may have renamed the file between our open and our lock.
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self._hidden))
        except FileNotFoundError:
            return False


def write_at(file: FileIO, data: bytes | memoryview, offset: int) -> None:
    """Write all of the data. Local.

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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError that lacks one, such as that of a full disk. Local.

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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
