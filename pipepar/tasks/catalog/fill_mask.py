"""Five words for each mask."""

from __future__ import annotations

from typing import Any, Final

import torch

from pipepar.errors import InputError
from pipepar.model.source.heads import Head, Logits
from pipepar.tasks.answers import Answer, Columns, Rows, full_precision
from pipepar.tasks.model_folder import ModelFolder
from pipepar.tasks.task import Task
from pipepar.tasks.token_answers import Vocabulary, token_logits, tokens_of

_BEST: Final = 5
"""The number of words for each mask."""


def fillings(vocabulary: Vocabulary) -> Answer:
    """Return the function that finds the best words for each mask.

    Args:
        vocabulary: the model's tokenizer, which has a mask token.

    Returns:
        A function of logits [B, S, V] and the columns of
        ``TokenizedOptions(token_columns=True)``. For a sample with one mask it returns a list of
        five ``{"score", "token", "token_str", "sequence"}``, best first, and for a sample with
        several masks a list of such lists. The list is empty if truncation removed all masks.
    """

    def answer(output: Any, columns: Columns) -> Rows:
        logits = token_logits(output, columns)
        return [
            _fillings(row, tokens_of(columns, sample), vocabulary)
            for sample, row in enumerate(logits)
        ]

    return answer


def _fillings(logits: torch.Tensor, columns: Columns, vocabulary: Vocabulary) -> list[Any]:
    """Return the answer of one sample; `columns` are its `tokens_of`."""
    ids = columns["input_ids"]
    masks = (ids == vocabulary.mask_token_id).nonzero().flatten()
    # Only the rows of masks, since a row is as long as the vocabulary.
    scores = full_precision(logits[columns["real"] == 1][masks]).softmax(-1)
    best = scores.topk(min(_BEST, scores.shape[-1]))
    filled = [
        [
            _filling(ids, mask, score, token, len(masks) == 1, vocabulary)
            for score, token in zip(values.tolist(), tokens.tolist(), strict=True)
        ]
        for mask, values, tokens in zip(masks, best.values, best.indices, strict=True)
    ]
    return filled[0] if len(filled) == 1 else filled


def _filling(
    ids: torch.Tensor,
    mask: torch.Tensor,
    score: float,
    token: int,
    single_mask: bool,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Return the answer for one token at one mask; `mask` is the 0-d position in `ids`."""
    filled = ids.clone()
    filled[mask] = token
    filled = filled[filled != vocabulary.pad_token_id]
    return {
        "score": score,
        "token": token,
        "token_str": vocabulary.decode([token]),
        # With several masks, the others are special tokens that must stay in the text.
        "sequence": vocabulary.decode(filled.tolist(), skip_special_tokens=single_mask),
    }


def _answers(folder: ModelFolder | None) -> Answer:
    assert folder is not None  # see Task.about_tokens
    return fillings(folder.tokenizer())


def _mask(folder: ModelFolder) -> str:
    """Return the text of the mask token.

    Raises:
        InputError: the tokenizer has none.
    """
    mask: str | None = folder.tokenizer().mask_token
    if mask is None:
        raise InputError(
            f"the tokenizer of {folder.path} has no mask token, expected a model trained to fill "
            "masks; give such a model, or another --task than fill-mask"
        )
    return mask


TASK = Task(
    Head("AutoModelForMaskedLM", Logits),
    answers=_answers,
    required_text=_mask,
    about_tokens=True,
)
