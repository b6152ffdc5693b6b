"""The lines of a UTF-8 file, for formats whose samples are lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipepar.data.readers.text_samples import Text
from pipepar.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[str, Text]]:
    """Yield each line, also an empty one, with its location: ``PATH, line NUMBER``, from 1.

    Args:
        path: a UTF-8 file, lines ended by ``\\n`` or ``\\r\\n``, with or without a byte order mark.

    Yields:
        ``(location, line)``, without the line ending; ``(location, InputError)`` for a line that is
        not UTF-8.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            where = f"{path}, line {number}"
            yield where, _decoded(line.removesuffix(b"\n").removesuffix(b"\r"), where)


def read_valid_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the same as `read_lines`, but raise the error of a line that is not UTF-8.

    Args:
        path: as for `read_lines`.

    Yields:
        ``(location, line)``.

    Raises:
        InputError: a line is not UTF-8; the message has the line number.
    """
    for where, line in read_lines(path):
        if isinstance(line, InputError):
            raise line
        yield where, line


def _decoded(line: bytes, where: str) -> Text:
    """Return a line as a string; return, not raise, an InputError if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        problem = InputError(
            f"{where}: byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8; "
            "expected UTF-8 text. Convert the file, for example with iconv -f latin1 -t utf-8."
        )
        problem.__cause__ = error
        return problem
