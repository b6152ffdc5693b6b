"""The entities in a text, as Hugging Face's pipeline returns them without aggregation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from pipepar.data.packed_strings import unpack_strings
from pipepar.model.source.heads import Head, Logits
from pipepar.tasks.answers import Answer, Columns, Rows, full_precision
from pipepar.tasks.model_folder import ModelFolder
from pipepar.tasks.task import Task
from pipepar.tasks.token_answers import Vocabulary, token_logits, tokens_of

_NO_ENTITY: Final = "O"
"""The class of a token that belongs to no entity."""


def entities(vocabulary: Vocabulary, names: Sequence[str]) -> Answer:
    """Return the function that finds the entities in each text.

    Args:
        vocabulary: the model's tokenizer.
        names: the names of the classes.

    Returns:
        A function of logits [B, S, classes] and the columns of
        ``TokenizedOptions(token_columns=True)``. It returns for each sample a list of ``{"entity",
        "score", "index", "word", "start", "end"}``, without special tokens and tokens
        of class "O". "start" and "end" are None if the tokenizer gives no offsets.
    """

    def answer(output: Any, columns: Columns) -> Rows:
        scores = full_precision(token_logits(output, columns)).softmax(-1)
        texts = unpack_strings(columns["text"])
        return [
            _entities(row, tokens_of(columns, sample), text, vocabulary, names)
            for sample, (row, text) in enumerate(zip(scores, texts, strict=True))
        ]

    return answer


def _entities(
    scores: torch.Tensor, columns: Columns, text: str, vocabulary: Vocabulary, names: Sequence[str]
) -> list[dict[str, Any]]:
    best = scores[columns["real"] == 1].max(-1)
    found = []
    for index, number in enumerate(best.indices.tolist()):
        if columns["special_tokens_mask"][index] or names[number] == _NO_ENTITY:
            continue
        token = int(columns["input_ids"][index])
        word, start, end = vocabulary.convert_ids_to_tokens(token), None, None
        if "offset_mapping" in columns:
            start, end = columns["offset_mapping"][index].tolist()
            # An unknown token has no word in the vocabulary; take it from the text.
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


def _answers(folder: ModelFolder | None) -> Answer:
    assert folder is not None  # see Task.about_tokens
    return entities(folder.tokenizer(), folder.classes().names)


TASK = Task(Head("AutoModelForTokenClassification", Logits), answers=_answers, about_tokens=True)
