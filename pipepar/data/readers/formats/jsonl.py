"""Text (.jsonl): a sample per line, the field 'text' of an object, or a bare string."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pipepar.data.readers.input_format import TextFormat
from pipepar.data.readers.text_lines import read_lines, read_valid_lines
from pipepar.data.readers.text_samples import Text
from pipepar.errors import InputError

_TEXT: Final = "text"
_LABEL: Final = "label"


def _texts(path: Path) -> Iterator[tuple[str, Text]]:
    """Yield the location of each line, and its text or the error if it has none."""
    for where, line in read_lines(path):
        yield where, line if isinstance(line, InputError) else _text_or_error(line, where)


def _text_or_error(line: str, where: str) -> Text:
    """Return the text of a line, or the InputError of `_text` as a value."""
    try:
        return _text(line, where)
    except InputError as error:
        return error


def _text(line: str, where: str) -> str:
    """Return the text of a line.

    Raises:
        InputError: the line is not JSON, or has no text, or its text is not valid Unicode.
    """
    value = _parsed(line, where)
    text = value.get(_TEXT) if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise InputError(
            f"{where}: found {_described(value)}; expected an object whose field {_TEXT!r} is a "
            "string, or a bare string. Name the right field, or repair the line."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: half of a surrogate pair at character {error.start}; expected valid Unicode "
            "text. Repair the \\u escape."
        ) from error
    return text


def _described(value: object) -> str:
    """Describe a value without a valid text, for an error message."""
    if not isinstance(value, Mapping):
        return f"a bare {type(value).__name__}"
    if _TEXT in value:
        return f"a {type(value[_TEXT]).__name__} in it"
    return f"an object with the fields {_fields(value)}"


def _labels(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the location and the label of each line: a bare value, or an object's field 'label'.

    Raises:
        InputError: a line is not UTF-8 or not JSON, or its object has no label.
    """
    for where, line in read_valid_lines(path):
        value = _parsed(line, where)
        if isinstance(value, Mapping):
            if _LABEL not in value:
                raise InputError(
                    f"{where}: found an object with the fields {_fields(value)}; expected one with "
                    f"the field {_LABEL!r}, or a bare name or number. Rename the field."
                )
            value = value[_LABEL]
        yield where, value


def _fields(value: Mapping[str, object]) -> str:
    """Return the names of the fields, for an error message."""
    return ", ".join(map(repr, value)) or "(none)"


def _parsed(line: str, where: str) -> object:
    """Return the JSON value of a line.

    Raises:
        InputError: the line is not valid JSON, or is nested too deeply.
    """
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Only the message, since the text of the exception states line 1 for every line.
        problem = getattr(error, "msg", error)
        raise InputError(
            f"{where}: invalid JSON ({problem}); expected one object or one value. "
            "Repair or remove the line."
        ) from error
    return value


FORMAT = TextFormat(suffixes=(".jsonl",), texts=_texts, labels=_labels)
