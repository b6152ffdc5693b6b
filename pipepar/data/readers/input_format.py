"""What a format of inputs is: the suffixes, the kind of samples, and how they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pipepar.data.readers.array_samples import ArraySamples, Rows
from pipepar.data.readers.prepared import Samples
from pipepar.data.readers.text_samples import Text, TextRules, TextSamples
from pipepar.files import fingerprint

Kind: TypeAlias = Literal["arrays", "pictures", "text"]
"""What the samples are, before anything makes a model's arguments of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat(ABC):
    """What all formats state."""

    kind: ClassVar[Kind]
    is_folder: ClassVar[bool] = False
    """Whether the input is a folder. Only one format is."""
    suffixes: tuple[str, ...]
    """Of the file, or of the files in the folder that count; in lower case, with their dot."""
    labels: Callable[[Path], Iterator[tuple[str, object]]] | None = None
    """Yields where each sample is, for messages, and the name or number of its class, as the file
    has it; None for a format that is not read as ``--labels``."""

    @abstractmethod
    def open(self, path: Path, rules: TextRules) -> Samples:
        """Open an input, and check what can be checked without computing.

        Args:
            path: the input; it exists.
            rules: what its texts must be; arrays and pictures have none.

        Raises:
            InputError: it cannot be read.
        """

    def fingerprint(self, path: Path) -> str:
        """SHA-256 of what tells the input at a path from others; see `pipepar.files.fingerprint`.

        Raises:
            OSError: it cannot be read.
        """
        return fingerprint(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat(InputFormat):
    """A file of texts."""

    kind = "text"
    texts: Callable[[Path], Iterator[tuple[str, Text]]]
    """Yields where each sample is, for messages (the file, and its line or row), and the text, or
    the InputError of this sample alone. Raises InputError if the whole file cannot be read."""

    def open(self, path: Path, rules: TextRules) -> Samples:
        """Read all texts once; see `TextSamples`."""
        return TextSamples(path, self.texts, rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFormat(InputFormat):
    """A file of arrays whose first dimension counts the samples."""

    kind = "arrays"
    arrays: Callable[[Path], Mapping[str, Rows]]
    """Opens a file: the model's keyword arguments by name, or its one positional argument under
    the name ``""``. Raises InputError if it cannot be read."""

    def open(self, path: Path, rules: TextRules) -> Samples:
        """Open all arrays; see `ArraySamples`."""
        return ArraySamples(path, self.arrays(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFolder(InputFormat):
    """A folder of pictures."""

    kind = "pictures"
    is_folder = True
    pictures: Callable[[Path], Samples]
    """Opens a folder. Raises InputError if there is no picture in it."""
    digest: Callable[[Path], str]
    """SHA-256 of what tells a folder from others."""

    def open(self, path: Path, rules: TextRules) -> Samples:
        """List the pictures."""
        return self.pictures(path)

    def fingerprint(self, path: Path) -> str:
        """SHA-256 of what tells the folder from others."""
        return self.digest(path)
