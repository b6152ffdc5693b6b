"""Texts for a tokenizer: tokenised window by window, micro-batches of similar length."""

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
from pipepar.data.sample_names import naming_samples, sample_names
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError, StageError

_SANE_LENGTH = 1_000_000
"""Tokens. A tokenizer that knows no limit claims 1e30; no model has positions for as many."""

_TOLD = ("input_ids", "special_tokens_mask", "offset_mapping")
"""What a tokenizer tells of each token, for those who look at the tokens afterwards."""

Row: TypeAlias = dict[str, list[Any]]
"""One tokenised sample: a list with one entry a token, by name."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    model_max_length: int
    model_input_names: list[str]
    padding_side: str

    @property
    def is_fast(self) -> bool:
        """Whether it knows where in the text each token was."""

    @property
    def pad_token_id(self) -> Any:
        """The id that fills short rows; None if the tokenizer has none."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenise a list of texts: lists of ids by input name."""

    def pad(self, *args: Any, **kwargs: Any) -> Any:
        """Pad tokenised texts to one length: tensors by input name."""


@dataclass(frozen=True, slots=True)
class TokenizedOptions:
    """How texts become tokens."""

    max_length: int | None = None
    """Tokens after which a sample is cut; None for the tokenizer's own limit, or no limit if it
    knows none."""
    pad_to_limit: bool = False
    """Whether every sample is padded to as many tokens as after which it is cut."""
    tell_tokens: bool = False
    """Whether feeds have, as extras, what the tokens were: "input_ids", "special_tokens_mask" and
    "real" (1 but for padding), int64 [B, S]; from a fast tokenizer also "offset_mapping", int64
    [B, S, 2]; and "text", packed strings."""
    rules: TextRules = field(default_factory=TextRules)
    """What the texts must be."""
    window: int = 4096
    """About how many samples are tokenised and sorted together, at least 1."""


def open_tokenized(
    path: Path, tokenizer: Tokenizer, options: TokenizedOptions | None = None
) -> Reader:
    """Open a file of texts for a tokenizer, and check every text of it.

    Feeds hold samples of similar length: within each window the longest come first. The memory used
    is bounded by the window, or by a micro-batch where that is larger, not by the file.

    Args:
        path: a file of a format that holds texts.
        tokenizer: a Hugging Face tokenizer with a padding token.
        options: how texts become tokens; the defaults if left out.

    Returns:
        A reader whose feeds hold the tokenizer's model inputs as keyword arguments, int64
        [B, longest of the micro-batch], or [B, limit].

    Raises:
        InputError: a text cannot be read or breaks the rules (with its line or row), the file is
            missing or of another format, the tokenizer cannot pad, an option is out of range, or
            the limit leaves no room for a token of a text's own.
    """
    options = options or TokenizedOptions()
    _require_options(tokenizer, options)
    limit = _limit(tokenizer, options.max_length)
    _require_room(tokenizer, limit)
    found = find_input_format(path, lambda each: each.kind == "text")
    texts = found.open(path, options.rules)
    if options.pad_to_limit and limit is None:
        raise InputError(
            "the tokenizer knows no longest length to pad to; expected one. Give --max-length."
        )
    return _TokenizedReader(texts, tokenizer, limit, options)


class _TokenizedReader:
    def __init__(
        self, texts: Samples, tokenizer: Tokenizer, limit: int | None, options: TokenizedOptions
    ) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        # Never 0 tokens wide, which few models bear: empty texts may have no tokens at all.
        self._width = limit if options.pad_to_limit and limit else 1
        self._window = options.window
        self._tell_tokens = options.tell_tokens
        self._options = {"padding": False, "truncation": limit is not None, "max_length": limit}
        if options.tell_tokens:
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
        # Whole micro-batches only, so that none is odd at a window's end; at least one.
        whole = max(micro_batch, self._window - self._window % micro_batch)
        for window in self._texts.batches(whole, done):
            yield from self._window_feeds(window.content, window.start, micro_batch, done)

    def _window_feeds(
        self, texts: list[Text], start: int, micro_batch: int, done: SampleSet
    ) -> Iterator[Feed]:
        rows, faults = self._rows(texts, start)
        for at, fault in faults.items():
            if start + at not in done:
                yield Feed(torch.tensor([start + at]), (), {}, {}, fault)
        # Longest first, so that memory runs out at once or never; the sort is stable.
        order = sorted(rows, key=lambda at: -_length(rows[at]))
        for first in range(0, len(order), micro_batch):
            chosen = order[first : first + micro_batch]
            if done.holds([start + at for at in chosen]):
                continue
            samples = torch.tensor(chosen, dtype=torch.int64) + start
            some = [str(texts[at]) for at in chosen]
            yield self._feed(samples, some, [rows[at] for at in chosen])

    def _rows(
        self, texts: list[Text], start: int
    ) -> tuple[dict[int, Row], dict[int, PipeparError]]:
        """The texts as rows, and those that are none, by their place."""
        faults: dict[int, PipeparError] = {
            at: text for at, text in enumerate(texts) if isinstance(text, InputError)
        }
        good = {at: text for at, text in enumerate(texts) if isinstance(text, str)}
        try:
            return dict(zip(good, self._tokenise([*good.values()]), strict=True)), faults
        except Exception:  # of whatever tokenizer; one by one, it shows which text is to blame
            rows = {}
            for at, text in good.items():
                row = self._row(text, start + at)
                if isinstance(row, StageError):
                    faults[at] = row
                else:
                    rows[at] = row
            return rows, faults

    def _row(self, text: str, sample: int) -> Row | StageError:
        try:
            with naming_samples("the tokenizer", lambda _: sample_names([sample])):
                return self._tokenise([text])[0]
        except StageError as error:
            return error

    def _tokenise(self, texts: list[str]) -> list[Row]:
        encoded = self._tokenizer(texts, **self._options)
        names = [name for name in self._tokenizer.model_input_names if name in encoded]
        names += [name for name in _TOLD if name in encoded and name not in names]
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
        extras = self._extras(texts, rows, width) if self._tell_tokens else {}
        return Feed(samples, (), kwargs, extras)

    def _extras(self, texts: list[str], rows: list[Row], width: int) -> dict[str, torch.Tensor]:
        left = self._tokenizer.padding_side == "left"
        told = {name: [row[name] for row in rows] for name in _TOLD if name in rows[0]}
        told["real"] = [[1] * _length(row) for row in rows]
        extras = {name: _padded(values, width, left) for name, values in told.items()}
        return {**extras, "text": pack_strings(texts)}


def _padded(values: list[list[Any]], width: int, left: bool) -> torch.Tensor:
    """Rows of numbers, or of pairs of numbers, as one int64 tensor with 0 where there is none."""
    filled = next((row[0] for row in values if row), 0)
    padded = torch.zeros(len(values), width, *torch.tensor(filled).shape, dtype=torch.int64)
    for row, given in zip(padded, values, strict=True):
        if given:
            start = width - len(given) if left else 0
            row[start : start + len(given)] = torch.tensor(given)
    return padded


def _length(row: Row) -> int:
    return len(next(iter(row.values())))


def _limit(tokenizer: Tokenizer, max_length: int | None) -> int | None:
    if max_length is not None:
        return max_length
    return tokenizer.model_max_length if tokenizer.model_max_length < _SANE_LENGTH else None


def _require_room(tokenizer: Tokenizer, limit: int | None) -> None:
    """Refuse a limit that special tokens use up: tokenizers then cut nothing, or everything."""
    count = getattr(tokenizer, "num_special_tokens_to_add", None)
    special = count() if count is not None else 0
    if limit is not None and limit <= special:
        raise InputError(
            f"texts are to be cut after {limit} token{'s' * (limit != 1)}, and the tokenizer adds "
            f"{special} special ones to each; expected room for at least one of the text's own. "
            f"Give --max-length {special + 1} or more."
        )


def _require_options(tokenizer: Tokenizer, options: TokenizedOptions) -> None:
    if options.max_length is not None and options.max_length < 1:
        raise InputError(f"max_length {options.max_length}; expected at least 1 token. Raise it.")
    if options.window < 1:
        raise InputError(f"window {options.window}; expected at least 1 sample. Raise it.")
    if tokenizer.pad_token_id is None:
        raise InputError(
            "the tokenizer has no padding token; expected one, as the rows of a micro-batch differ "
            "in length. Set tokenizer.pad_token (often to tokenizer.eos_token), or 'pad_token' in "
            "the model folder's tokenizer_config.json."
        )
