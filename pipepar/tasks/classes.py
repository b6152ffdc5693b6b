"""Classification: the best class of a sample and its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipepar.data.packed_strings import unpack_strings
from pipepar.errors import InputError
from pipepar.tasks.answers import Columns, Rows, full_precision, logits_of


@dataclass(frozen=True, slots=True)
class Classes:
    """The names of a model's classes, and the meaning of its logits."""

    names: tuple[str, ...] = ()
    """The names in the order of the class numbers; empty if the model has none."""
    problem: str | None = None
    """Hugging Face's problem_type; None to derive it from the number of classes."""

    def label(self, number: int) -> str | int:
        """Return the name of a class, or its number if it has no name."""
        return self.names[number] if number < len(self.names) else number

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the scores that Hugging Face's pipelines compute from logits.

        Args:
            logits: [B, classes], float32 or float64.

        Returns:
            A tensor of the same shape and dtype: the logits themselves for a regression; their
            sigmoid if several classes may be correct or there is only one class; else their
            softmax.
        """
        if self.problem == "regression":
            return logits
        if self.problem == "multi_label_classification" or logits.shape[1] == 1:
            return logits.sigmoid()
        return logits.softmax(-1)

    def answer(self, output: Any, columns: Columns) -> Rows:
        """Return the best class of each sample; an `Answer`.

        Args:
            output: the model's output; its logits are [B, classes].
            columns: may contain "file", the file of each sample as a packed string.

        Returns:
            ``{"label": ..., "score": ...}`` for each sample, and its "file" if the columns have it.

        Raises:
            InputError: the output has no such logits.
        """
        best = self.scores(full_precision(class_logits(output))).max(-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        answers = [{"label": self.label(number), "score": score} for number, score in pairs]
        if "file" not in columns:
            return answers
        files = unpack_strings(columns["file"])
        return [{"file": f, **answer} for f, answer in zip(files, answers, strict=True)]


def class_logits(output: Any) -> torch.Tensor:
    """Return the logits of a classifier in its output.

    Args:
        output: the model's output.

    Returns:
        A floating-point tensor [B, classes].

    Raises:
        InputError: the logits have another shape or dtype, or the model has several outputs and
            none is called logits.
    """
    logits = logits_of(output)
    if logits.dim() != 2 or not logits.dtype.is_floating_point:
        raise InputError(
            f"the model returns {logits.dtype} of shape {tuple(logits.shape)}; expected the "
            "scores of classes, floats [samples, classes]. Leave --labels out, or choose another "
            "--task, for example raw."
        )
    return logits
