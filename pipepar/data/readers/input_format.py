"""The contract of a format of inputs: its suffixes, its kind of samples, and how to read them."""

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
"""The kind of the samples in the file, before they are prepared as arguments of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat(ABC):
    """A format of inputs; each file of `readers.formats` defines one."""

    kind: ClassVar[Kind]
    is_folder: ClassVar[bool] = False
    """Whether the input is a folder; true for one format only."""
    suffixes: tuple[str, ...]
    """Suffixes of the file, or of the samples in the folder; in lower case, with their dot."""
    labels: Callable[[Path], Iterator[tuple[str, object]]] | None = None
    """Yields for each sample its location, for messages, and its label as read from the file, which
    the caller checks. Raises InputError if the file is damaged. None if ``--labels`` does not
    accept the format."""

    @abstractmethod
    def open(self, path: Path, rules: TextRules) -> Samples:
        """Open an input, and check it: all texts, the shapes and dtypes of arrays, no pictures.

        Args:
            path: an existing input.
            rules: requirements of texts; ignored for arrays and pictures.

        Returns:
            The samples, which are read from the input when they are iterated.

        Raises:
            InputError: the input is damaged, or its content is invalid.
            OSError: the input cannot be read.
        """

    def fingerprint(self, path: Path) -> str:
        """Return a SHA-256 digest that identifies the input; see `pipepar.files.fingerprint`.

        Raises:
            OSError: the input cannot be read.
        """
        return fingerprint(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat(InputFormat):
    """A file of texts."""

    kind = "text"
    texts: Callable[[Path], Iterator[tuple[str, Text]]]
    """Yields for each sample its location, for messages (the file, and its line or row), and its
    text, or an InputError if the text of this sample cannot be read. Raises OSError if the file
    cannot be read."""

    def open(self, path: Path, rules: TextRules) -> Samples:
        """Read the whole file once, to check and count the texts; see `TextSamples`."""
        return TextSamples(path, self.texts, rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFormat(InputFormat):
    """A file of arrays whose dimension 0 is the sample."""

    kind = "arrays"
    arrays: Callable[[Path], Mapping[str, Rows]]
    """Opens a file and returns the model's keyword arguments by name, or its only positional
    argument under the name ``""``. Raises InputError if the file cannot be read, or if torch
    lacks a dtype."""

    def open(self, path: Path, rules: TextRules) -> Samples:
        """Open all arrays, and check their numbers of rows; see `ArraySamples`."""
        return ArraySamples(path, self.arrays(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFolder(InputFormat):
    """A folder of pictures."""

    kind = "pictures"
    is_folder = True
    pictures: Callable[[Path], Samples]
    """Opens a folder. Raises InputError if it contains no picture."""
    digest: Callable[[Path], str]
    """Returns a SHA-256 digest that identifies the pictures of a folder, without reading them."""

    def open(self, path: Path, rules: TextRules) -> Samples:
        """List the pictures; each is decoded, and so checked, when its micro-batch is read."""
        return self.pictures(path)

    def fingerprint(self, path: Path) -> str:
        """Return the digest of the pictures; see `digest`."""
        return self.digest(path)
