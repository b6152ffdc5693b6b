"""A reader that tokenises texts, and groups texts of similar length into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from pipepar.data.packed_strings import pack_strings
from pipepar.data.readers.prepared import Samples
from pipepar.data.readers.reader import Feed, Reader, require_micro_batch
from pipepar.data.readers.registry import find_input_format
from pipepar.data.readers.text_samples import Text, TextRules
from pipepar.data.sample_names import sample_names, stage_errors
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError, StageError

_NO_LIMIT = 1_000_000
"""In tokens: a limit of this size or more counts as none; tokenizers without one state 1e30."""

_TOKEN_COLUMNS = ("input_ids", "special_tokens_mask", "offset_mapping")
"""Outputs of the tokenizer, one entry per token, that become columns for token tasks."""

Row: TypeAlias = dict[str, list[Any]]
"""One tokenised sample: lists with one entry per token, by name."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    model_max_length: int
    model_input_names: list[str]
    padding_side: str

    @property
    def is_fast(self) -> bool:
        """Whether it returns the position of each token in the text."""

    @property
    def pad_token_id(self) -> Any:
        """The id of the padding token; None if the tokenizer has none."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenise a list of texts; return lists of ids by input name."""

    def pad(self, *args: Any, **kwargs: Any) -> Any:
        """Pad tokenised texts to one length; return tensors by input name."""


@dataclass(frozen=True, slots=True)
class TokenizedOptions:
    """Options of the tokenisation."""

    max_length: int | None = None
    """Largest number of tokens of a sample; longer ones are truncated. None for the tokenizer's own
    limit, if it has one."""
    pad_to_limit: bool = False
    """Whether every sample is padded to the largest number of tokens."""
    token_columns: bool = False
    """Whether feeds have columns that describe the tokens: "input_ids", "special_tokens_mask" and
    "real" (0 for padding, else 1), int64 [B, S]; with a fast tokenizer also "offset_mapping", int64
    [B, S, 2]; and "text", packed strings."""
    rules: TextRules = field(default_factory=TextRules)
    """Requirements of the texts."""
    window: int = 4096
    """Approximate number of samples that are tokenised and sorted together, at least 1."""


def open_tokenized(
    path: Path, tokenizer: Tokenizer, options: TokenizedOptions | None = None
) -> Reader:
    """Open a file of texts, and check every text.

    A feed has samples of similar length, since each window of samples is sorted, the longest first.
    A text that is invalid, or that the tokenizer cannot process, has a feed of its own with a
    fault. Memory is bounded by a window, or by a micro-batch if that is larger.

    Args:
        path: a file of a format of texts.
        tokenizer: a Hugging Face tokenizer with a padding token.
        options: options of the tokenisation; None for the defaults.

    Returns:
        A reader whose feeds have the tokenizer's model inputs as keyword arguments, int64
        [B, longest of the micro-batch], or [B, limit].

    Raises:
        InputError: a text is invalid and the rules are not lenient (the message has its line or
            row), the file is missing or of another format, the tokenizer cannot pad, an option is
            out of range, there is no limit to pad to, or special tokens alone reach the limit.
    """
    options = options or TokenizedOptions()
    _require_options(tokenizer, options)
    limit = _limit(tokenizer, options.max_length)
    _require_room(tokenizer, limit)
    found = find_input_format(path, lambda each: each.kind == "text")
    texts = found.open(path, options.rules)
    if options.pad_to_limit and limit is None:
        raise InputError(
            "the tokenizer has no largest length to pad to; expected one. Give --max-length."
        )
    return _TokenizedReader(texts, tokenizer, limit, options)


class _TokenizedReader:
    def __init__(
        self, texts: Samples, tokenizer: Tokenizer, limit: int | None, options: TokenizedOptions
    ) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        # At least 1, since few models support 0 tokens, and empty texts may have none.
        self._width = limit if options.pad_to_limit and limit else 1
        self._window = options.window
        self._token_columns = options.token_columns
        self._options = {"padding": False, "truncation": limit is not None, "max_length": limit}
        if options.token_columns:
            self._options |= {
                "return_special_tokens_mask": True,
                "return_offsets_mapping": tokenizer.is_fast,
            }

    def __len__(self) -> int:
        return len(self._texts)

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        require_micro_batch(micro_batch)
        return self._feeds(micro_batch, done or SampleSet(len(self)))

    def example(self) -> Feed:
        texts = self._texts.example().content
        rows, faults = self._rows(texts, 0)
        samples = torch.arange(len(texts))
        if faults:
            return Feed(samples, (), {}, {}, next(iter(faults.values())))
        return self._feed(samples, texts, [*rows.values()])

    def _feeds(self, micro_batch: int, done: SampleSet) -> Iterator[Feed]:
        # A multiple of the micro-batch. So without faults, only the last window ends with a smaller
        # one.
        window_size = max(micro_batch, self._window - self._window % micro_batch)
        for window in self._texts.batches(window_size, done):
            yield from self._window_feeds(window.content, window.start, micro_batch, done)

    def _window_feeds(
        self, texts: list[Text], start: int, micro_batch: int, done: SampleSet
    ) -> Iterator[Feed]:
        """Yield the feeds of a window: those with a fault first, then the others, longest first."""
        rows, faults = self._rows(texts, start)
        for at, fault in faults.items():
            if start + at not in done:
                yield Feed(torch.tensor([start + at]), (), {}, {}, fault)
        # The longest first, so that a lack of memory shows early in the window.
        order = sorted(rows, key=lambda at: -_length(rows[at]))
        for first in range(0, len(order), micro_batch):
            chosen = order[first : first + micro_batch]
            if done.contains_microbatch([start + at for at in chosen]):
                continue
            samples = torch.tensor(chosen, dtype=torch.int64) + start
            chosen_texts = [str(texts[at]) for at in chosen]
            yield self._feed(samples, chosen_texts, [rows[at] for at in chosen])

    def _rows(
        self, texts: list[Text], start: int
    ) -> tuple[dict[int, Row], dict[int, PipeparError]]:
        """Return the rows of the valid texts, and the errors of the others, by index in `texts`."""
        faults: dict[int, PipeparError] = {
            at: text for at, text in enumerate(texts) if isinstance(text, InputError)
        }
        valid = {at: text for at, text in enumerate(texts) if isinstance(text, str)}
        try:
            return dict(zip(valid, self._tokenise([*valid.values()]), strict=True)), faults
        except Exception:  # any tokenizer's error; one text at a time shows which text causes it
            rows = {}
            for at, text in valid.items():
                row = self._row(text, start + at)
                if isinstance(row, StageError):
                    faults[at] = row
                else:
                    rows[at] = row
            return rows, faults

    def _row(self, text: str, sample: int) -> Row | StageError:
        try:
            with stage_errors("the tokenizer", lambda _: sample_names([sample])):
                return self._tokenise([text])[0]
        except StageError as error:
            return error

    def _tokenise(self, texts: list[str]) -> list[Row]:
        encoded = self._tokenizer(texts, **self._options)
        names = [name for name in self._tokenizer.model_input_names if name in encoded]
        names += [name for name in _TOKEN_COLUMNS if name in encoded and name not in names]
        return [{name: encoded[name][at] for name in names} for at in range(len(texts))]

    def _feed(self, samples: torch.Tensor, texts: list[str], rows: list[Row]) -> Feed:
        names = [name for name in self._tokenizer.model_input_names if name in rows[0]]
        width = max(self._width, *map(_length, rows))
        padded = self._tokenizer.pad(
            {name: [row[name] for row in rows] for name in names},
            padding="max_length",
            max_length=width,
            return_tensors="pt",
        )
        kwargs = {name: padded[name].to(torch.int64) for name in padded}
        columns = self._extras(texts, rows, width) if self._token_columns else {}
        return Feed(samples, (), kwargs, columns)

    def _extras(self, texts: list[str], rows: list[Row], width: int) -> dict[str, torch.Tensor]:
        left = self._tokenizer.padding_side == "left"
        lists = {name: [row[name] for row in rows] for name in _TOKEN_COLUMNS if name in rows[0]}
        lists["real"] = [[1] * _length(row) for row in rows]
        columns = {name: _padded(values, width, left) for name, values in lists.items()}
        return {**columns, "text": pack_strings(texts)}


def _padded(values: list[list[Any]], width: int, left: bool) -> torch.Tensor:
    """Return rows of numbers, or of pairs of numbers, as one int64 tensor, padded with 0."""
    entry = next((row[0] for row in values if row), 0)
    padded = torch.zeros(len(values), width, *torch.tensor(entry).shape, dtype=torch.int64)
    for target, row in zip(padded, values, strict=True):
        if row:
            start = width - len(row) if left else 0
            target[start : start + len(row)] = torch.tensor(row)
    return padded


def _length(row: Row) -> int:
    return len(next(iter(row.values())))


def _limit(tokenizer: Tokenizer, max_length: int | None) -> int | None:
    """Return the largest number of tokens of a sample; None for no limit."""
    if max_length is not None:
        return max_length
    return tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None


def _require_room(tokenizer: Tokenizer, limit: int | None) -> None:
    """Refuse a limit that leaves room for special tokens only.

    With such a limit, tokenizers truncate nothing, or all of the text.
    """
    count = getattr(tokenizer, "num_special_tokens_to_add", None)
    special = count() if count is not None else 0
    if limit is not None and limit <= special:
        raise InputError(
            f"texts are truncated to {limit} token{'s' * (limit != 1)}, and the tokenizer adds "
            f"{special} special ones to each; expected room for at least one other token. "
            f"Give --max-length {special + 1} or more."
        )


def _require_options(tokenizer: Tokenizer, options: TokenizedOptions) -> None:
    if options.max_length is not None and options.max_length < 1:
        raise InputError(f"max_length {options.max_length}; expected at least 1 token. Raise it.")
    if options.window < 1:
        raise InputError(f"window {options.window}; expected at least 1 sample. Raise it.")
    if tokenizer.pad_token_id is None:
        raise InputError(
            "the tokenizer has no padding token; expected one, since the rows of a micro-batch "
            "differ in length. Set tokenizer.pad_token (often to tokenizer.eos_token), or "
            "'pad_token' in the model folder's tokenizer_config.json."
        )
