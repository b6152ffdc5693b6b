"""Text in: samples read line by line, tokenised window by window, bucketed by length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from pipepar.data.feed import TEXT_SUFFIXES, Feed, Reader, require_micro_batch, require_suffix
from pipepar.errors import InputError

_SANE_LENGTH = 1_000_000
"""Tokens. A tokenizer that knows no limit claims 1e30; no model has positions for as many."""


class Tokenizer(Protocol):
    """What the data room asks of a Hugging Face tokenizer."""

    model_max_length: int
    model_input_names: list[str]

    @property
    def pad_token_id(self) -> Any:
        """The id that fills short rows; None if the tokenizer has none."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenise a list of texts: lists of ids by input name."""

    def pad(self, *args: Any, **kwargs: Any) -> Any:
        """Pad tokenised texts to one length: tensors by input name."""


def open_text(
    path: Path,
    tokenizer: Tokenizer,
    max_length: int | None = None,
    field: str = "text",
    window: int = 4096,
) -> Reader:
    """Open a file of texts, one a line, and check every line of it. Local.

    A ``.txt`` file has one sample a line, empty lines included. A ``.jsonl`` file has one object
    with the field, or one bare string, a line. Feeds hold samples of similar length: within each
    window the longest come first. The memory used is bounded by the window, not by the file.

    Args:
        path: a ``.txt`` or ``.jsonl`` file, UTF-8, lines ended by ``\\n`` or ``\\r\\n``.
        tokenizer: a Hugging Face tokenizer with a padding token.
        max_length: tokens after which a sample is cut; None for the tokenizer's own limit, or no
            limit if it knows none.
        field: the field of a ``.jsonl`` object that holds the text.
        window: samples that are tokenised and sorted together, at least 1.

    Returns:
        A reader whose feeds hold the tokenizer's model inputs as keyword arguments, int64
        [B, longest of the micro-batch].

    Raises:
        InputError: a line cannot be decoded or holds no text (with its 1-based number), the file
            is missing or of another suffix, the tokenizer cannot pad, or an option is out of range.
    """
    require_suffix(path, TEXT_SUFFIXES)
    _require_options(tokenizer, max_length, window)
    return _TextReader(path, tokenizer, _limit(tokenizer, max_length), field, window)


class _TextReader:
    def __init__(
        self, path: Path, tokenizer: Tokenizer, limit: int | None, field: str, window: int
    ) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self._limit = limit
        self._field = field
        self._window = window
        self._count = sum(1 for _ in self._texts())

    def __len__(self) -> int:
        return self._count

    def feeds(self, micro_batch: int) -> Iterator[Feed]:
        require_micro_batch(micro_batch)
        return self._feeds(micro_batch)

    def example(self) -> Feed:
        texts = list(islice(self._texts(), 2)) or ["example"] * 2
        return self._feed(torch.arange(len(texts)), self._tokenise(texts))

    def _feeds(self, micro_batch: int) -> Iterator[Feed]:
        texts, start = self._texts(), 0
        while window := list(islice(texts, self._window)):
            if start + len(window) > self._count:
                raise self._changed(f"at least {start + len(window)}")
            yield from self._window_feeds(window, start, micro_batch)
            start += len(window)
        if start < self._count:
            raise self._changed(str(start))

    def _window_feeds(self, texts: list[str], start: int, micro_batch: int) -> Iterator[Feed]:
        rows = self._tokenise(texts)
        # Longest first, so that memory runs out at once or never; the sort is stable.
        order = sorted(range(len(rows)), key=lambda at: -_length(rows[at]))
        for first in range(0, len(order), micro_batch):
            chosen = order[first : first + micro_batch]
            samples = torch.tensor(chosen, dtype=torch.int64) + start
            yield self._feed(samples, [rows[at] for at in chosen])

    def _tokenise(self, texts: list[str]) -> list[dict[str, list[int]]]:
        encoded = self._tokenizer(
            texts, padding=False, truncation=self._limit is not None, max_length=self._limit
        )
        names = [name for name in self._tokenizer.model_input_names if name in encoded]
        return [{name: encoded[name][at] for name in names} for at in range(len(texts))]

    def _feed(self, samples: torch.Tensor, rows: list[dict[str, list[int]]]) -> Feed:
        padded = self._tokenizer.pad(
            {name: [row[name] for row in rows] for name in rows[0]},
            padding="max_length",
            # Never 0 tokens wide, which few models bear: empty lines may have no tokens at all.
            max_length=max(1, *map(_length, rows)),
            return_tensors="pt",
        )
        return Feed(samples, (), {name: padded[name].to(torch.int64) for name in padded})

    def _texts(self) -> Iterator[str]:
        as_text = _json_text if self._path.suffix.lower() == ".jsonl" else _plain_text
        for number, line in _lines(self._path):
            yield as_text(line, self._field, f"{self._path}, line {number}")

    def _changed(self, found: str) -> InputError:
        return InputError(
            f"{self._path} has {found} lines now; expected {self._count}, as when it was opened. "
            "Run again on a file that nothing writes to."
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line and its 1-based number, without its end."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                yield number, raw.decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: byte 0x{raw[error.start]:02x} at position "
                    f"{error.start} is not UTF-8; expected UTF-8 text. Convert the file, for "
                    "example with iconv -f latin1 -t utf-8."
                ) from error


def _plain_text(line: str, field: str, where: str) -> str:
    return line


def _json_text(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        # The message alone: the error's own text counts every line as line 1.
        problem = getattr(error, "msg", error)
        raise InputError(
            f"{where}: no valid JSON ({problem}); expected one object or one string. "
            "Repair or remove the line."
        ) from error
    text = value.get(field) if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise InputError(
            f"{where}: found {_describe(value, field)}; expected an object whose field {field!r} "
            "is a string, or a bare string. Name the right field, or repair the line."
        )
    return _encodable(text, where)


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


def _length(row: Mapping[str, Sequence[int]]) -> int:
    return len(next(iter(row.values())))


def _limit(tokenizer: Tokenizer, max_length: int | None) -> int | None:
    if max_length is not None:
        return max_length
    return tokenizer.model_max_length if tokenizer.model_max_length < _SANE_LENGTH else None


def _require_options(tokenizer: Tokenizer, max_length: int | None, window: int) -> None:
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length {max_length}; expected at least 1 token. Raise it.")
    if window < 1:
        raise InputError(f"window {window}; expected at least 1 sample. Raise it.")
    if tokenizer.pad_token_id is None:
        raise InputError(
            "the tokenizer has no padding token; expected one, as the rows of a micro-batch differ "
            "in length. Set tokenizer.pad_token (often to tokenizer.eos_token), or 'pad_token' in "
            "the model folder's tokenizer_config.json."
        )
