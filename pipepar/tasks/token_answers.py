"""Functions for tasks on tokens. S is the number of tokens in a row, including padding."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from pipepar.errors import InputError
from pipepar.tasks.answers import Columns, logits_of


class Vocabulary(Protocol):
    """The part of a Hugging Face tokenizer that these tasks use."""

    unk_token_id: Any
    mask_token_id: Any
    pad_token_id: Any

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token of an id."""

    def decode(self, ids: Any, **options: Any) -> Any:
        """Return the text of a list of ids."""


def tokens_of(columns: Columns, sample: int) -> dict[str, torch.Tensor]:
    """Return the columns of one sample, without padding in all but `real`.

    Args:
        columns: the columns of a micro-batch from a tokenizing reader.
        sample: the position of the sample in the micro-batch.

    Returns:
        `input_ids`, `special_tokens_mask` and `offset_mapping`, as far as the columns have them;
        and `real`, int [S], which is 1 for a token and 0 for padding.
    """
    real = columns["real"][sample] == 1
    names = ("input_ids", "special_tokens_mask", "offset_mapping")
    found = {name: columns[name][sample][real] for name in names if name in columns}
    return {**found, "real": columns["real"][sample]}


def token_logits(output: Any, columns: Columns) -> torch.Tensor:
    """Return the logits of tokens in a model's output.

    Args:
        output: the model's output.
        columns: the columns of the micro-batch from a tokenizing reader.

    Returns:
        A tensor [B, S, classes].

    Raises:
        InputError: the output has no logits (see `logits_of`), or they have another shape.
    """
    logits = logits_of(output)
    rows = tuple(columns["real"].shape)
    if logits.dim() != 3 or tuple(logits.shape[:2]) != rows:
        raise InputError(
            f"the model returns logits of shape {tuple(logits.shape)}; expected scores for each "
            f"token, {(*rows, 'classes')}. Choose the --task that the model was trained for."
        )
    return logits
