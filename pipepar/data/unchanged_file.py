"""Detects whether an input changes while it is read."""

from __future__ import annotations

import os
from pathlib import Path

from pipepar.errors import InputError


class UnchangedFile:
    """The size and the modification time of a file when it was opened.

    A truncated file may end in the middle of a line, or read as zeros where it is mapped. A file
    that is overwritten may yield old and new samples. So samples are valid only if the file is
    unchanged after they were read.
    """

    def __init__(self, path: Path) -> None:
        """Store the size and the modification time.

        Args:
            path: an existing file.

        Raises:
            OSError: the file cannot be opened.
        """
        self._path = path
        with path.open("rb") as file:  # NFS refreshes its cached attributes only at an open
            self._size, self._modified = _state(os.fstat(file.fileno()))

    def check(self) -> None:
        """Check that the file is unchanged, so that what was read is valid.

        Raises:
            InputError: the file has another size or modification time, or cannot be accessed.
        """
        try:
            size, modified = _state(self._path.stat())
        except OSError as error:
            raise InputError(
                f"{self._path} is gone, {error.strerror}; expected it to stay unchanged during the "
                "run. Run again, and do not move the file."
            ) from error
        if size != self._size:
            raise InputError(
                f"{self._path} has {size} bytes now; expected {self._size}, as when it was opened. "
                "Run again on a file that nothing writes to."
            )
        if modified != self._modified:
            raise InputError(
                f"{self._path} was written to after it was opened; expected it to stay unchanged "
                "during the run. Run again on a file that nothing writes to."
            )


def _state(status: os.stat_result) -> tuple[int, int]:
    """Return the size in bytes and the modification time in nanoseconds."""
    return status.st_size, status.st_mtime_ns
