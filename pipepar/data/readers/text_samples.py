"""Texts as samples: read from a file one after the other, every one of them checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from pipepar.data.readers.prepared import Batch
from pipepar.data.sample_set import SampleSet
from pipepar.data.unchanged_file import UnchangedFile
from pipepar.errors import InputError

Text: TypeAlias = str | InputError
"""A text, or why a sample has none."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """What the texts of an input must be."""

    required: str = ""
    """What every text must contain."""
    lenient: bool = False
    """Whether a sample without such a text is a fault of its micro-batch; if not, the input is
    refused when it is opened."""


class TextSamples:
    """The texts of a file, in its order. Memory is bounded by a batch."""

    def __init__(
        self, path: Path, texts: Callable[[Path], Iterator[tuple[str, Text]]], rules: TextRules
    ) -> None:
        """Read the whole file once.

        Args:
            path: the file.
            texts: yields each text, or why there is none, after where it is, for messages.
            rules: what the texts must be.

        Raises:
            InputError: a text cannot be read or breaks the rules, and these are not lenient.
        """
        self._path = path
        self._texts = texts
        self._rules = rules
        self._steady = UnchangedFile(path)
        self._count = 0
        for text in self._checked():
            if isinstance(text, InputError) and not rules.lenient:
                raise text
            self._count += 1

    def __len__(self) -> int:
        """Number of texts."""
        return self._count

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        """Read lists of so many texts, fewer at the end, as many in all as when it was opened.

        The content has a sample's error in the place of its text; the first is the batch's fault.
        """
        texts = self._checked()
        for start in range(0, self._count, size):
            some = list(islice(texts, size))
            self._steady.check()
            if not done.covers(start, start + len(some)):
                fault = next((text for text in some if isinstance(text, InputError)), None)
                yield Batch(start, len(some), some, fault=fault)

    def example(self) -> Batch:
        """Return up to 2 texts, made up for an empty file."""
        readable = (text for text in self._checked() if isinstance(text, str))
        texts = list(islice(readable, 2)) or [f"example {self._rules.required}".rstrip()] * 2
        return Batch(0, len(texts), texts)

    def _checked(self) -> Iterator[Text]:
        required = self._rules.required
        for where, text in self._texts(self._path):
            if isinstance(text, str) and required not in text:
                yield InputError(
                    f"{where}: found no {required} in it; expected at least one, for the task to "
                    "fill. Repair or remove the sample."
                )
            else:
                yield text
