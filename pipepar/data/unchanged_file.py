"""An input that must stay as it is while it is read."""

from __future__ import annotations

import os
from pathlib import Path

from pipepar.errors import InputError


class UnchangedFile:
    """Knows how large a file was when it was opened, and when it was last written to.

    A file that is cut short ends in the middle of a line, or reads as zeros where it is mapped; of
    one that is written over, some samples are old and some new. So what was read is right only if
    the file was still the same afterwards.
    """

    def __init__(self, path: Path) -> None:
        """Take note of the file.

        Args:
            path: the file; it exists.
        """
        self._path = path
        with path.open("rb") as file:  # NFS looks anew at a file only where it is opened
            self._size, self._written = _state(os.fstat(file.fileno()))

    def check(self) -> None:
        """See that what has been read so far was there.

        Raises:
            InputError: the file has another size or time now, or is gone.
        """
        try:
            size, written = _state(self._path.stat())
        except OSError as error:
            raise InputError(
                f"{self._path} is gone, {error.strerror}; expected it to stay. Run again on one "
                "that does."
            ) from error
        if size != self._size:
            raise InputError(
                f"{self._path} has {size} bytes now; expected {self._size}, as when it was opened. "
                "Run again on a file that nothing writes to."
            )
        if written != self._written:
            raise InputError(
                f"{self._path} was written to after it had been opened; expected it to stay as it "
                "was. Run again on a file that nothing writes to."
            )


def _state(status: os.stat_result) -> tuple[int, int]:
    """A file's size, and when it was last written to, in nanoseconds; reading changes neither."""
    return status.st_size, status.st_mtime_ns
