"""How often each class was taken for which: right answers against the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from pipepar.data.readers.labels import require_classes

Counts: TypeAlias = list[Any]
"""Samples that were counted, as a JSON value."""


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """How well one class was recognised."""

    name: str
    """What it is called, or its number."""
    samples: int
    """Samples that are of this class."""
    predicted: int
    """Samples that the model put into it."""
    right: int
    """Samples that are of it and were put into it."""

    @property
    def precision(self) -> float | None:
        """Share of the predicted that is right; None if nothing was predicted so."""
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the class that was found; None if no sample is of it."""
        return self.right / self.samples if self.samples else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix, of which only the cells that are not 0 are kept."""

    names: tuple[str, ...]
    """Of all classes, by number."""
    cells: tuple[tuple[int, int, int], ...]
    """(right class, predicted class, samples), sorted; classes may be very many, so no matrix."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(count for _, _, count in self.cells)

    @property
    def accuracy(self) -> float | None:
        """Share of the samples whose class was found; None without samples."""
        right = sum(count for label, found, count in self.cells if label == found)
        return right / self.samples if self.cells else None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Confusion:
        """The matrix whose fields `dataclasses.asdict` returned, also after JSON."""
        cells = ((label, found, count) for label, found, count in fields["cells"])
        return cls(tuple(fields["names"]), tuple(cells))

    def classes(self) -> list[ClassQuality]:
        """Return each class's own figures, by number; those that never occurred included."""
        samples, predicted, right = Counter[int](), Counter[int](), Counter[int]()
        for label, found, count in self.cells:
            samples[label] += count
            predicted[found] += count
            right[label] += count * (label == found)
        return [
            ClassQuality(name, samples[at], predicted[at], right[at])
            for at, name in enumerate(self.names)
        ]


class Tally:
    """Counts, micro-batch by micro-batch, what becomes a `Confusion`."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin with nothing.

        Args:
            names: of the classes; empty where they have none.
        """
        self._names = tuple(names)
        self._cells = Counter[tuple[int, int]]()
        self._classes = len(self._names)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> Counts:
        """Count some samples.

        Args:
            logits: [B, classes]; the largest of a row is the model's answer.
            labels: int64 [B], the right classes.

        Returns:
            What was counted, for `restore`.

        Raises:
            InputError: a label is no class of the model, or there is only one class.
        """
        self._classes = max(self._classes, logits.shape[1])
        # Checked before the work too, where the graph knows the number of classes.
        require_classes(labels, logits.shape[1])
        found = logits.argmax(-1).cpu()
        cells = Counter(zip(labels.tolist(), found.tolist(), strict=True))
        self._cells.update(cells)
        return [logits.shape[1], [[label, taken, times] for (label, taken), times in cells.items()]]

    def restore(self, counts: Counts) -> None:
        """Count samples as an earlier run did.

        Args:
            counts: what `add` returned.
        """
        classes, cells = counts
        self._classes = max(self._classes, classes)
        self._cells.update({(label, taken): times for label, taken, times in cells})

    def confusion(self) -> Confusion:
        """Return what was counted so far."""
        names = [*self._names, *map(str, range(len(self._names), self._classes))]
        cells = ((label, found, count) for (label, found), count in self._cells.items())
        return Confusion(tuple(names), tuple(sorted(cells)))
