"""The hidden partial file of an output, which is renamed when it is complete."""

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
    """The hidden file ``.NAME.partial`` in the folder of an output.

    The name is fixed, so that the next run continues or overwrites the file of a killed run. A lock
    prevents two runs from sharing the file. On a file system without locks, a run that does not
    resume creates a new file. An earlier run detects that before it next commits a record or
    renames its file.

    Attributes:
        path: the final name.
        file: the partial file, open for reading and writing; `clear` may replace it.
    """

    def __init__(self, path: Path) -> None:
        """Open and lock the partial file, with the content that an earlier run left.

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
            # The run that had the lock may rename the file after the open and before the lock.
            own = self.is_own
        except BlockingIOError:
            own = False
        if not own:
            self.file.close()
            raise InputError(
                f"output {path} is being written by another run, which holds {self._hidden}; "
                "expected one run per output. Choose another output, or wait until that run ends."
            )

    @property
    def is_empty(self) -> bool:
        """Whether the file has no bytes."""
        return os.fstat(self.file.fileno()).st_size == 0

    @property
    def is_own(self) -> bool:
        """Whether the hidden name still refers to the file that this run has open."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self._hidden))
        except FileNotFoundError:
            return False

    def require_own(self) -> None:
        """Refuse to continue if another run replaced the file, as may happen without locks.

        Raises:
            InputError: the file was removed or replaced.
        """
        if not self.is_own:
            raise InputError(
                f"output {self.path}: {self._hidden} is gone or is not the file that this run "
                "opened; expected one run per output. Check whether another run writes to it, "
                "and run again, or choose another output."
            )

    def clear(self) -> None:
        """Remove the content of the file.

        Raises:
            OSError: the file system refuses.
        """
        if self._locked:
            self.file.truncate(0)
            return
        # Another run may be writing to this file. Its `require_own` fails after the replacement.
        self.file.close()
        self._hidden.unlink(missing_ok=True)
        self.file = _opened(self._hidden, os.O_CREAT | os.O_EXCL)

    def commit(self) -> None:
        """Sync the file, rename it to the final name, and close it.

        Raises:
            InputError: see `require_own`.
            OSError: see `rename_synced`.
        """
        self.require_own()
        rename_synced(self.file, self._hidden, self.path)
        self.file.close()

    def keep(self) -> None:
        """Close the file for a later run to resume; remove it if empty. May be called twice."""
        if not self.file.closed and self.is_empty:
            self.discard()
        self.file.close()

    def discard(self) -> None:
        """Close the file and remove it, unless it is closed or replaced. May be called twice."""
        if not self.file.closed and self.is_own:
            self._hidden.unlink()
        self.file.close()


def partial_of(path: Path) -> Path:
    """Return the path of the partial file of an output file."""
    return path.with_name(f".{path.name}.partial")


def _opened(path: Path, flags: int) -> FileIO:
    # Unbuffered, so that a full disk raises OSError in the write, and not again in each close.
    return FileIO(os.open(path, os.O_RDWR | flags, 0o666), "r+")


def _lock(file: FileIO) -> bool:
    """Lock a file for this run; return False if its file system has no locks.

    Raises:
        BlockingIOError: another run has the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def rename_synced(file: FileIO, hidden: Path, path: Path) -> None:
    """Sync a complete file, rename it, and sync its folder, to survive a crash of the host.

    Args:
        file: the open file.
        hidden: its current name.
        path: its final name, in the same folder.

    Raises:
        OSError: the file system refuses. The final name then refers to the earlier file; or to the
            new file, which may not survive a crash, if only the folder could not be synced.
    """
    os.fsync(file.fileno())
    os.replace(hidden, path)
    sync_folder(path.parent)


def write_at(file: FileIO, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of the data.

    Args:
        file: open for writing.
        data: bytes.
        offset: bytes from the start of the file.

    Raises:
        OSError: the file system refuses. (With a memory map, a full disk would raise SIGBUS.)
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def read_at(file: FileIO, offset: int, size: int) -> bytes:
    """Read `size` bytes at an offset; fewer if the file ends before.

    Args:
        file: open for reading.
        offset: bytes from the start of the file.
        size: number of bytes.

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
def named_os_errors(path: Path) -> Iterator[None]:
    """Add a file name to an OSError of the body that has none, such as that of a full disk.

    Args:
        path: the file that the body works on.

    Raises:
        OSError: the exception of the body, with a file name.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, if the file system supports that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
