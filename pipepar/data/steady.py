"""An input that must stay as it is while it is read."""

from __future__ import annotations

from pathlib import Path

from pipepar.errors import InputError


class Steady:
    """Knows how large a file was when it was opened. Local.

    A file that is cut short ends in the middle of a line, or reads as zeros where it is mapped. So
    what was read is right only if the file was still whole afterwards.
    """

    def __init__(self, path: Path) -> None:
        """Take note of the file.

        Args:
            path: the file; it exists.
        """
        self._path = path
        self._size = path.stat().st_size

    def check(self) -> None:
        """See that what has been read so far was there.

        Raises:
            InputError: the file has another size now, or is gone.
        """
        try:
            size = self._path.stat().st_size
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
