"""What a task asks of a model beyond its own forward."""

from __future__ import annotations

import torch
from torch import nn

# Keeps a row without any token from dividing by zero.
_SMALLEST_COUNT = 1e-9


class MeanPooling(nn.Module):
    """Sentence embeddings: the mean of an encoder's last hidden state over the real tokens.

    Args:
        model: an encoder whose output has `last_hidden_state`, [B, S, H].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Embed a batch.

        Args:
            inputs: the encoder's inputs; `attention_mask`, [B, S], is 1 on real tokens.

        Returns:
            Embeddings, [B, H], not normalised.
        """
        hidden = self.model(**inputs).last_hidden_state  # [B, S, H]
        real = inputs["attention_mask"].unsqueeze(-1).expand(hidden.size())
        real = real.to(torch.promote_types(hidden.dtype, torch.float32))
        return torch.sum(hidden * real, 1) / torch.clamp(real.sum(1), min=_SMALLEST_COUNT)
