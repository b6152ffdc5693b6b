"""Texts, one a line: read, decoded and checked one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from pipepar.data.readers.prepared import Batch, Prepare, Prepared
from pipepar.data.readers.reader import TEXT_SUFFIXES, Reader, require_suffix
from pipepar.data.sample_set import SampleSet
from pipepar.data.unchanged_file import UnchangedFile
from pipepar.errors import InputError

Text: TypeAlias = str | InputError
"""A text, or why a line holds none."""


def open_texts(
    path: Path, prepare: Prepare, what: str, field: str = "text", lenient: bool = False
) -> Reader:
    """Open a file of texts whose lines a function makes the model's arguments of. Local.

    Args:
        path: a ``.txt`` or ``.jsonl`` file, as for ``open_text``.
        prepare: given a list of texts, returns the model's arguments for them.
        what: that function, as a message shall call it.
        field: the field of a ``.jsonl`` object that holds the text.
        lenient: see `Texts`.

    Returns:
        A reader whose feeds have the lines in the file's order.

    Raises:
        InputError: a line cannot be decoded or holds no text (with its 1-based number), or the
            file is missing or of another suffix.
    """
    return Prepared(Texts(path, field, lenient=lenient), prepare, what)


class Texts:
    """The texts of a file, one a line, every one of them checked. Local."""

    def __init__(
        self, path: Path, field: str = "text", required: str = "", lenient: bool = False
    ) -> None:
        """Read the whole file once.

        Args:
            path: a ``.txt`` or ``.jsonl`` file, UTF-8.
            field: the field of a ``.jsonl`` object that holds the text.
            required: what every text must contain.
            lenient: whether a line without a text is not refused here, but told in its place.

        Raises:
            InputError: as for ``open_texts``, or a text lacks what is required.
        """
        require_suffix(path, TEXT_SUFFIXES)
        self.path = path
        self._field = field
        self._required = required
        self._steady = UnchangedFile(path)
        self._count = 0
        for text in self.texts():
            if isinstance(text, InputError) and not lenient:
                raise text
            self._count += 1

    def __len__(self) -> int:
        """Number of lines."""
        return self._count

    def texts(self) -> Iterator[Text]:
        """Read all texts, from the first; the file is checked again on the way."""
        for number, line in enumerate(_lines(self.path), start=1):
            yield self._text(line, f"{self.path}, line {number}")

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        """Read lists of so many texts, fewer at the end, as many in all as when it was opened.

        The content has a line's problem in the place of its text; the first is the batch's fault.
        """
        texts = self.texts()
        for start in range(0, self._count, size):
            some = list(islice(texts, size))
            self._steady.check()
            if not done.covers(start, start + len(some)):
                fault = next((text for text in some if isinstance(text, InputError)), None)
                yield Batch(start, len(some), some, fault=fault)

    def example(self) -> Batch:
        """Return up to 2 texts, made up for an empty file."""
        readable = (text for text in self.texts() if isinstance(text, str))
        texts = list(islice(readable, 2)) or [f"example {self._required}".rstrip()] * 2
        return Batch(0, len(texts), texts)

    def _text(self, line: bytes, where: str) -> Text:
        as_text = _json_text if self.path.suffix.lower() == ".jsonl" else _plain_text
        try:
            text = as_text(_decoded(line, where), self._field, where)
        except InputError as error:
            return error
        if self._required not in text:
            return InputError(
                f"{where}: found no {self._required} in it; expected at least one, for the "
                "task to fill. Repair or remove the line."
            )
        return text


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line and its 1-based number, without its end. Local.

    Args:
        path: a UTF-8 file, lines ended by ``\\n`` or ``\\r\\n``, with or without a byte order mark.

    Raises:
        InputError: a line is no UTF-8; the message has its number.
    """
    for number, line in enumerate(_lines(path), start=1):
        yield number, _decoded(line, f"{path}, line {number}")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield line.removesuffix(b"\n").removesuffix(b"\r")


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8; "
            "expected UTF-8 text. Convert the file, for example with iconv -f latin1 -t utf-8."
        ) from error


def _plain_text(line: str, field: str, where: str) -> str:
    return line


def _json_text(line: str, field: str, where: str) -> str:
    value = parse_json(line, where)
    text = value.get(field) if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise InputError(
            f"{where}: found {_describe(value, field)}; expected an object whose field {field!r} "
            "is a string, or a bare string. Name the right field, or repair the line."
        )
    return _encodable(text, where)


def parse_json(line: str, where: str) -> object:
    """Read one line of a ``.jsonl`` file. Local.

    Args:
        line: the line.
        where: the file and the line's number, for the message.

    Raises:
        InputError: the line is no JSON.
    """
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        # The message alone: the error's own text counts every line as line 1.
        problem = getattr(error, "msg", error)
        raise InputError(
            f"{where}: no valid JSON ({problem}); expected one object or one value. "
            "Repair or remove the line."
        ) from error
    return value


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: half of a surrogate pair at character {error.start}, which is no text; "
            "expected Unicode. Repair the \\u escape."
        ) from error
    return text


def _describe(value: object, field: str) -> str:
    if not isinstance(value, Mapping):
        return f"a bare {type(value).__name__}"
    if field in value:
        return f"a {type(value[field]).__name__} in it"
    return f"an object with the fields {', '.join(map(repr, value)) or '(none)'}"
