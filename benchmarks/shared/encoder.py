"""A transformer encoder in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """One pre-norm encoder layer.

    Args:
        size: the features of a token, a multiple of 64.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.heads = size // 64
        self.before_attention, self.before_feed_forward = nn.LayerNorm(size), nn.LayerNorm(size)
        self.project = nn.Linear(size, 3 * size)
        self.merge = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(
            nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of the tokens, [B, S, size] to [B, S, size]."""
        batch, length, size = x.shape
        joint = self.project(self.before_attention(x))
        parts = joint.view(batch, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])  # [B, heads, S, 64]
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, length, size))
        y: torch.Tensor = x + self.feed_forward(self.before_feed_forward(x))
        return y


def encoder(layers: int, size: int) -> nn.Module:
    """Return an encoder for inference; its weights are the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(size) for _ in range(layers))).eval().requires_grad_(False)
