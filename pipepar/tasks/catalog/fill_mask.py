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
"""Proposals for each mask."""


def fillings(vocabulary: Vocabulary) -> Answer:
    """Answer with the best words for each mask.

    Args:
        vocabulary: the model's tokenizer, which has a mask token.

    Returns:
        An answer that needs the columns of ``TokenizedOptions(token_columns=True)`` and logits
        [B, S, V]; for a sample with one mask a list of five ``{"score", "token", "token_str",
        "sequence"}``, for one with several a list of such lists, for one whose masks were all cut
        off with the end of its text an empty list.
    """

    def answer(output: Any, columns: Columns) -> Rows:
        logits = token_logits(output, columns)
        return [_fillings(row, tokens_of(columns, at), vocabulary) for at, row in enumerate(logits)]

    return answer


def _fillings(logits: torch.Tensor, columns: Columns, vocabulary: Vocabulary) -> list[Any]:
    ids = columns["input_ids"]
    masks = (ids == vocabulary.mask_token_id).nonzero().flatten()
    # Only the masks' rows: the words of a vocabulary are many.
    scores = full_precision(logits[columns["real"] == 1][masks]).softmax(-1)
    best = scores.topk(min(_BEST, scores.shape[-1]))
    filled = [
        [
            _filling(ids, at, score, token, len(masks) == 1, vocabulary)
            for score, token in zip(values.tolist(), tokens.tolist(), strict=True)
        ]
        for at, values, tokens in zip(masks, best.values, best.indices, strict=True)
    ]
    return filled[0] if len(filled) == 1 else filled


def _filling(
    ids: torch.Tensor,
    at: torch.Tensor,
    score: float,
    token: int,
    plain: bool,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    filled = ids.clone()
    filled[at] = token
    filled = filled[filled != vocabulary.pad_token_id]
    return {
        "score": score,
        "token": token,
        "token_str": vocabulary.decode([token]),
        # With several masks the others stay visible, and so do all special tokens.
        "sequence": vocabulary.decode(filled.tolist(), skip_special_tokens=plain),
    }


def _answers(folder: ModelFolder | None) -> Answer:
    assert folder is not None  # see Task.about_tokens
    return fillings(folder.tokenizer())


def _mask(folder: ModelFolder) -> str:
    """The text that stands for a mask."""
    mask: str | None = folder.tokenizer().mask_token
    if mask is None:
        raise InputError(
            f"the tokenizer of {folder.path} has no mask token, which fill-mask needs; expected "
            "a model trained to fill masks: give another, or another --task"
        )
    return mask


TASK = Task(
    Head("AutoModelForMaskedLM", Logits),
    answers=_answers,
    required_text=_mask,
    about_tokens=True,
)
