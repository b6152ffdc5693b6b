"""Reads and checks labels, the correct class of each sample, and adds them as a column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from pipepar.data.readers.reader import Feed, Reader
from pipepar.data.readers.registry import find_input_format
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError

_SHOWN: Final = 20
_END: Final = 2**63
"""Labels are smaller, since they are int64."""


def read_labels(path: Path, names: Sequence[str]) -> torch.Tensor:
    """Read a file of labels.

    Args:
        path: a file of a format that has labels: ``.npy`` of integers [N]; ``.txt`` of a name or
            number per line; ``.jsonl`` of a name, a number, or an object with the field ``label``
            per line.
        names: names of the classes by number; if empty, all labels must be numbers.

    Returns:
        int64 [N], the numbers of the classes.

    Raises:
        InputError: the file is missing, damaged or of another format, ``names`` has only
            one class, or a label is not a class; the message has its line or row.
    """
    found = find_input_format(path, lambda each: each.labels is not None)
    if names:
        require_classes(torch.empty(0), len(names))
    numbers = {name: number for number, name in enumerate(names)}
    values = found.labels(path) if found.labels else ()
    labels = [_number(value, names, numbers, where) for where, value in values]
    return torch.tensor(labels, dtype=torch.int64)


def require_classes(labels: torch.Tensor, classes: int, path: Path | None = None) -> None:
    """Refuse labels that are not classes of the model.

    Args:
        labels: int64 [N], 0 or more.
        classes: number of scores that the model returns per sample.
        path: the file if these are the labels of the whole input, else None.

    Raises:
        InputError: there is only one score, or a label is not a class; the message has the first
            such sample if there is a path.
    """
    if classes < 2:
        raise InputError(
            "the model has one score per sample, expected one for each class, of which the largest "
            "is the answer; leave --labels out"
        )
    wrong = (labels >= classes).nonzero()
    if len(wrong):
        row = int(wrong[0])
        where = "--labels has" if path is None else f"{path}: sample {row} has"
        raise InputError(
            f"{where} the label {int(labels[row])}, the model has {classes} classes, 0 to "
            f"{classes - 1}; give the labels that it was trained for"
        )


class LabelledReader:
    """A reader that adds the column "label", int64 [B], to the feeds of another reader."""

    def __init__(self, reader: Reader, labels: torch.Tensor, path: Path) -> None:
        """Wrap a reader.

        Args:
            reader: a reader of N samples.
            labels: int64 [N], in the input's order.
            path: the file of the labels, for messages.

        Raises:
            InputError: the numbers of labels and samples differ.
        """
        if len(labels) != len(reader):
            raise InputError(
                f"{path} has {len(labels)} labels for {len(reader)} samples; expected one per "
                "sample, in the input's order. Give the labels of this input."
            )
        self._reader = reader
        self._labels = labels
        self._path = path

    def require(self, classes: int) -> None:
        """Refuse labels that are not classes of the model; see `require_classes`."""
        require_classes(self._labels, classes, self._path)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._reader)

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        """Return an iterator over feeds; see `Reader.feeds`."""
        return map(self._labelled, self._reader.feeds(micro_batch, done))

    def example(self) -> Feed:
        """Return a feed of up to 2 rows, without labels."""
        return self._reader.example()

    def _labelled(self, feed: Feed) -> Feed:
        labels = self._labels[feed.samples]
        return dataclasses.replace(feed, columns={**feed.columns, "label": labels})


def _number(value: object, names: Sequence[str], numbers: Mapping[str, int], where: str) -> int:
    """Return the number of a class; names have precedence, since a name may consist of digits."""
    if isinstance(value, str) and value in numbers:
        return numbers[value]
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    in_range = isinstance(value, int) and 0 <= value < (len(names) or _END)
    if isinstance(value, bool) or not isinstance(value, int) or not in_range:
        raise _unknown(value, names, where)
    return value


def _unknown(value: object, names: Sequence[str], where: str) -> InputError:
    if not names:
        return InputError(
            f"{where}: found the label {value!r}; expected the number of a class, 0 or more, since "
            "the model names no classes. Write the numbers of its outputs."
        )
    known = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
    return InputError(
        f"{where}: found the label {value!r}; expected one of the model's {len(names)} classes "
        f"({known}), or its number, 0 to {len(names) - 1}. Write the names as the model has them."
    )
