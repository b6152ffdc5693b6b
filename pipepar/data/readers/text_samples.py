"""Texts as samples: read from a file in order, and checked."""

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
"""The text of a sample, or the error if it cannot be read."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """Requirements of the texts of an input."""

    required: str = ""
    """A string that every text must contain."""
    lenient: bool = False
    """Whether a sample without a valid text becomes the fault of its batch; otherwise the input is
    refused when it is opened."""


class TextSamples:
    """The texts of a file, in its order; memory is bounded by one batch."""

    def __init__(
        self, path: Path, texts: Callable[[Path], Iterator[tuple[str, Text]]], rules: TextRules
    ) -> None:
        """Read the whole file once, to check and count the texts.

        Args:
            path: the file.
            texts: yields the location of each text, for messages, and the text or its error.
            rules: requirements of the texts.

        Raises:
            InputError: a text is invalid, and the rules are not lenient.
        """
        self._path = path
        self._texts = texts
        self._rules = rules
        self._file = UnchangedFile(path)
        self._count = 0
        for text in self._checked():
            if isinstance(text, InputError) and not rules.lenient:
                raise text
            self._count += 1

    def __len__(self) -> int:
        """Number of texts."""
        return self._count

    def batches(self, size: int, done: SampleSet) -> Iterator[Batch]:
        """Yield batches of `size` texts; see `Samples.batches`. The last may be smaller.

        A sample without a valid text has its error in the batch instead, and the first error is
        also the fault of the batch.

        Raises:
            InputError: the file has changed since it was opened.
        """
        texts = self._checked()
        for start in range(0, self._count, size):
            some = list(islice(texts, size))
            self._file.check()
            if not done.covers(start, start + len(some)):
                fault = next((text for text in some if isinstance(text, InputError)), None)
                yield Batch(start, len(some), some, fault=fault)

    def example(self) -> Batch:
        """Return up to 2 valid texts, made up if there are none."""
        readable = (text for text in self._checked() if isinstance(text, str))
        texts = list(islice(readable, 2)) or [f"example {self._rules.required}".rstrip()] * 2
        return Batch(0, len(texts), texts)

    def _checked(self) -> Iterator[Text]:
        """Yield the text or the error of each sample; a text without `required` is an error."""
        required = self._rules.required
        for where, text in self._texts(self._path):
            if isinstance(text, str) and required not in text:
                yield InputError(
                    f"{where}: the text contains no {required}; expected at least one, for the "
                    "task to fill. Repair or remove the sample."
                )
            else:
                yield text
