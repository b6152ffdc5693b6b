"""The confusion matrix of a classification: correct classes against predicted classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from pipepar.data.readers.labels import require_classes

Counts: TypeAlias = list[Any]
"""[number of classes, [[correct class, predicted class, samples], ...]], as a JSON value."""


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """The precision and recall of one class."""

    name: str
    """The name of the class, or its number."""
    samples: int
    """Number of samples of the class."""
    predicted: int
    """Number of samples that were predicted to be of the class."""
    right: int
    """Number of samples of the class that were predicted correctly."""

    @property
    def precision(self) -> float | None:
        """`right` / `predicted`; None if the class was never predicted."""
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """`right` / `samples`; None if the class has no samples."""
        return self.right / self.samples if self.samples else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """A sparse confusion matrix: there may be very many classes."""

    names: tuple[str, ...]
    """The names of all classes, by number; a class without a name has its number as the name."""
    cells: tuple[tuple[int, int, int], ...]
    """(correct class, predicted class, samples) of each cell that is not 0, sorted."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(count for _, _, count in self.cells)

    @property
    def accuracy(self) -> float | None:
        """Share of the samples that were predicted correctly; None without samples."""
        right = sum(count for label, predicted, count in self.cells if label == predicted)
        return right / self.samples if self.cells else None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Confusion:
        """Return the matrix that `dataclasses.asdict` converted to fields, also after JSON."""
        cells = ((label, predicted, count) for label, predicted, count in fields["cells"])
        return cls(tuple(fields["names"]), tuple(cells))

    def classes(self) -> list[ClassQuality]:
        """Return the counts of each class, by number, including classes that never occurred."""
        samples, predictions, right = Counter[int](), Counter[int](), Counter[int]()
        for label, predicted, count in self.cells:
            samples[label] += count
            predictions[predicted] += count
            right[label] += count * (label == predicted)
        return [
            ClassQuality(name, samples[number], predictions[number], right[number])
            for number, name in enumerate(self.names)
        ]


class Tally:
    """A confusion matrix that is counted micro-batch by micro-batch."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with an empty matrix.

        Args:
            names: the names of the classes, by number; empty if they have none.
        """
        self._names = tuple(names)
        self._cells = Counter[tuple[int, int]]()
        self._classes = len(self._names)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> Counts:
        """Count the samples of a micro-batch.

        Args:
            logits: [B, classes]; the predicted class of a row has the largest value.
            labels: int64 [B], the correct classes.

        Returns:
            The counts of these samples alone, for `add_counts`.

        Raises:
            InputError: a label is not a class of the model, or there is only one class. Then the
                samples are not counted.
        """
        self._classes = max(self._classes, logits.shape[1])
        # A job checks its labels before it computes, unless the number of classes is unknown then.
        require_classes(labels, logits.shape[1])
        predicted = logits.argmax(-1).cpu()
        cells = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
        self._cells.update(cells)
        return [logits.shape[1], [[*cell, count] for cell, count in cells.items()]]

    def add_counts(self, counts: Counts) -> None:
        """Add the counts of another tally, such as that of an earlier run.

        Args:
            counts: the counts that `add` returned.
        """
        classes, cells = counts
        self._classes = max(self._classes, classes)
        self._cells.update({(label, predicted): count for label, predicted, count in cells})

    def confusion(self) -> Confusion:
        """Return the matrix of all samples that were counted so far."""
        names = [*self._names, *map(str, range(len(self._names), self._classes))]
        cells = ((*cell, count) for cell, count in self._cells.items())
        return Confusion(tuple(names), tuple(sorted(cells)))
