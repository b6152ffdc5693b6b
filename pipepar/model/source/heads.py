"""What a task adds to a model of a Hugging Face folder: a pooling, or the choice of an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

# Keeps a row without any token from dividing by zero.
_SMALLEST_COUNT: Final = 1e-9


class MeanPooling(nn.Module):
    """Sentence embeddings: the mean of an encoder's last hidden state over the real tokens.

    Args:
        model: an encoder whose output has `last_hidden_state`, [B, S, H].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Embed a batch.

        Args:
            attention_mask: 1 on real tokens, [B, S].
            inputs: the encoder's other inputs.

        Returns:
            Embeddings, [B, H], not normalised.
        """
        outputs = self.model(attention_mask=attention_mask, **inputs)
        hidden = outputs.last_hidden_state  # [B, S, H]
        real = attention_mask.unsqueeze(-1).expand(hidden.size())
        real = real.to(torch.promote_types(hidden.dtype, torch.float32))
        return torch.sum(hidden * real, 1) / torch.clamp(real.sum(1), min=_SMALLEST_COUNT)


class Logits(nn.Module):
    """A model with a head, of whose outputs only the scores count.

    Args:
        model: its output has `logits`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Score a batch.

        Args:
            inputs: the model's inputs, rows first.

        Returns:
            `logits`, [B, ..., classes].
        """
        return {"logits": self.model(**inputs).logits}


@dataclass(frozen=True, slots=True)
class Head:
    """How a Hugging Face folder becomes a model for a task."""

    auto_class: str | None
    """The class of transformers that builds it; None for the class that the folder names."""
    wrapper: type[nn.Module] | None
    """Makes the output of the task from the output of the model; None for the whole output."""


EMBEDDING: Final = Head("AutoModel", MeanPooling)
"""Sentence embeddings."""
