"""Answers about tokens: what each one is (token-classification), or what it could be (fill-mask).

The values are those of Hugging Face's pipelines. S tokens a row, padding included; V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from pipepar.data.answers import Answer, Extras, Rows, full_precision, logits_of
from pipepar.data.strings import unpack_strings
from pipepar.errors import InputError

_NOTHING = "O"
"""The class of tokens that are no entity."""
_BEST = 5
"""Proposals for each mask."""


class Vocabulary(Protocol):
    """What the answers ask of a Hugging Face tokenizer."""

    unk_token_id: Any
    mask_token_id: Any
    pad_token_id: Any

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token with an id."""

    def decode(self, ids: Any, **options: Any) -> Any:
        """Return the text of some ids."""


def entities(vocabulary: Vocabulary, names: Sequence[str]) -> Answer:
    """Answer with the entities in each text. *Local.*

    Args:
        vocabulary: the model's tokenizer.
        names: of the classes.

    Returns:
        An answer that needs the extras of ``open_text(..., tell_tokens=True)`` and logits
        [B, S, classes]; for each sample a list of ``{"entity", "score", "index", "word", "start",
        "end"}``, without special tokens and without the class "O".
    """

    def answer(output: Any, extras: Extras) -> Rows:
        scores = full_precision(_token_logits(output, extras)).softmax(-1)
        texts = unpack_strings(extras["text"])
        return [
            _entities(row, _told(extras, at), text, vocabulary, names)
            for at, (row, text) in enumerate(zip(scores, texts, strict=True))
        ]

    return answer


def _entities(
    scores: torch.Tensor, told: Extras, text: str, vocabulary: Vocabulary, names: Sequence[str]
) -> list[dict[str, Any]]:
    best = scores[told["real"] == 1].max(-1)
    found = []
    for index, number in enumerate(best.indices.tolist()):
        if told["special_tokens_mask"][index] or names[number] == _NOTHING:
            continue
        token = int(told["input_ids"][index])
        word, start, end = vocabulary.convert_ids_to_tokens(token), None, None
        if "offset_mapping" in told:
            start, end = told["offset_mapping"][index].tolist()
            # The vocabulary does not know the word, but the text has it.
            word = text[start:end] if token == vocabulary.unk_token_id else word
        score = float(best.values[index])
        found.append(
            {
                "entity": names[number],
                "score": score,
                "index": index,
                "word": word,
                "start": start,
                "end": end,
            }
        )
    return found


def fillings(vocabulary: Vocabulary) -> Answer:
    """Answer with the best words for each mask. *Local.*

    Args:
        vocabulary: the model's tokenizer, which has a mask token.

    Returns:
        An answer that needs the extras of ``open_text(..., tell_tokens=True)`` and logits
        [B, S, V]; for a sample with one mask a list of five ``{"score", "token", "token_str",
        "sequence"}``, for one with several a list of such lists, for one whose masks were all cut
        off with the end of its text an empty list.
    """

    def answer(output: Any, extras: Extras) -> Rows:
        logits = _token_logits(output, extras)
        return [_fillings(row, _told(extras, at), vocabulary) for at, row in enumerate(logits)]

    return answer


def _fillings(logits: torch.Tensor, told: Extras, vocabulary: Vocabulary) -> list[Any]:
    ids = told["input_ids"]
    masks = (ids == vocabulary.mask_token_id).nonzero().flatten()
    # Only the masks' rows: the words of a vocabulary are many.
    scores = full_precision(logits[told["real"] == 1][masks]).softmax(-1)
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


def _told(extras: Extras, at: int) -> dict[str, torch.Tensor]:
    """What is known of one sample's tokens, padding left out."""
    real = extras["real"][at] == 1
    known = ("input_ids", "special_tokens_mask", "offset_mapping")
    told = {name: extras[name][at][real] for name in known if name in extras}
    return {**told, "real": extras["real"][at]}


def _token_logits(output: Any, extras: Extras) -> torch.Tensor:
    logits = logits_of(output)
    rows = tuple(extras["real"].shape)
    if logits.dim() != 3 or tuple(logits.shape[:2]) != rows:
        raise InputError(
            f"the model returns logits of shape {tuple(logits.shape)}; expected scores for each "
            f"token, {(*rows, 'classes')}. Choose the --task that the model was trained for."
        )
    return logits
