"""What answers about tokens have in common; S tokens a row, padding included."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from pipepar.errors import InputError
from pipepar.tasks.answers import Columns, logits_of


class Vocabulary(Protocol):
    """What the answers ask of a Hugging Face tokenizer."""

    unk_token_id: Any
    mask_token_id: Any
    pad_token_id: Any

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token with an id."""

    def decode(self, ids: Any, **options: Any) -> Any:
        """Return the text of some ids."""


def tokens_of(columns: Columns, at: int) -> dict[str, torch.Tensor]:
    """What is known of one sample's tokens, padding left out."""
    real = columns["real"][at] == 1
    known = ("input_ids", "special_tokens_mask", "offset_mapping")
    found = {name: columns[name][at][real] for name in known if name in columns}
    return {**found, "real": columns["real"][at]}


def token_logits(output: Any, columns: Columns) -> torch.Tensor:
    """Find the scores of tokens in a model's output.

    Args:
        output: what the model returned.
        columns: of a tokenizing reader.

    Returns:
        A tensor [B, S, classes].

    Raises:
        InputError: it has another shape.
    """
    logits = logits_of(output)
    rows = tuple(columns["real"].shape)
    if logits.dim() != 3 or tuple(logits.shape[:2]) != rows:
        raise InputError(
            f"the model returns logits of shape {tuple(logits.shape)}; expected scores for each "
            f"token, {(*rows, 'classes')}. Choose the --task that the model was trained for."
        )
    return logits
