"""The modules that a task adds to a Hugging Face model: pooling, or the selection of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

# The smallest divisor, since a row may have no tokens.
_SMALLEST_COUNT: Final = 1e-9


class MeanPooling(nn.Module):
    """Sentence embeddings: the mean of an encoder's last hidden state over the tokens of a row.

    Args:
        model: an encoder whose output has `last_hidden_state`, [B, S, H].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of a batch.

        Args:
            attention_mask: int64 [B, S], 1 for a token and 0 for padding.
            inputs: the encoder's other inputs.

        Returns:
            Embeddings [B, H], not normalised, in the dtype of the hidden state or float32,
            whichever is more precise; zeros for a row without tokens.
        """
        outputs = self.model(attention_mask=attention_mask, **inputs)
        hidden = outputs.last_hidden_state  # [B, S, H]
        mask = attention_mask.unsqueeze(-1).expand(hidden.size())
        mask = mask.to(torch.promote_types(hidden.dtype, torch.float32))
        return torch.sum(hidden * mask, 1) / torch.clamp(mask.sum(1), min=_SMALLEST_COUNT)


class Logits(nn.Module):
    """The logits of a model with a head, without its other outputs.

    Args:
        model: its output has `logits`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits of a batch.

        Args:
            inputs: the model's inputs, [B, ...] each.

        Returns:
            A dict with one tensor, `logits`, [B, ..., classes].
        """
        return {"logits": self.model(**inputs).logits}


@dataclass(frozen=True, slots=True)
class Head:
    """The class of a task's model, and the class of the module that wraps the model."""

    auto_class: str | None
    """The transformers class that builds the model. None for the first class named in the folder's
    configuration that transformers has, or AutoModel if it has none of them."""
    wrapper: type[nn.Module] | None
    """The class of a module that calls the model and returns the task's output. None to return the
    whole output of the model."""


EMBEDDING: Final = Head("AutoModel", MeanPooling)
"""The head for sentence embeddings."""
