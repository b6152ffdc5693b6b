"""Classification: of a row of scores, the best class and how sure the model is of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipepar.data.packed_strings import unpack_strings
from pipepar.errors import InputError
from pipepar.tasks.answers import Columns, Rows, full_precision, logits_of


@dataclass(frozen=True, slots=True)
class Classes:
    """What a model's classes are called, and how its scores are meant."""

    names: tuple[str, ...] = ()
    """By class number; empty where nobody has named them."""
    problem: str | None = None
    """Hugging Face's problem_type; None to go by the number of classes."""

    def label(self, number: int) -> str | int:
        """Return a class's name, or its number where it has none."""
        return self.names[number] if number < len(self.names) else number

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits into what Hugging Face's pipelines call scores.

        Args:
            logits: [B, classes], float32 or better.

        Returns:
            The same shape: probabilities of classes that exclude each other (softmax) or do not
            (sigmoid), or what a regression says.
        """
        if self.problem == "regression":
            return logits
        if self.problem == "multi_label_classification" or logits.shape[1] == 1:
            return logits.sigmoid()
        return logits.softmax(-1)

    def answer(self, output: Any, columns: Columns) -> Rows:
        """Name the best class of each sample; an `Answer`.

        Args:
            output: the model's own; its logits are [B, classes].
            columns: the "file" of each sample is told too, if there is one.

        Returns:
            For each sample ``{"label": ..., "score": ...}``.
        """
        best = self.scores(full_precision(class_logits(output))).max(-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        answers = [{"label": self.label(number), "score": score} for number, score in pairs]
        if "file" not in columns:
            return answers
        files = unpack_strings(columns["file"])
        return [{"file": f, **answer} for f, answer in zip(files, answers, strict=True)]


def class_logits(output: Any) -> torch.Tensor:
    """Find the scores of a classifier in its output.

    Args:
        output: what the model returned.

    Returns:
        A tensor [B, classes].

    Raises:
        InputError: it has another shape, or cannot be told from the model's other outputs.
    """
    logits = logits_of(output)
    if logits.dim() != 2 or not logits.dtype.is_floating_point:
        raise InputError(
            f"the model returns {logits.dtype} of shape {tuple(logits.shape)}; expected the "
            "scores of classes, floats [samples, classes]. Leave --labels out, or choose another "
            "--task, for example raw."
        )
    return logits
