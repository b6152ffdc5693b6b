"""A model whose first, middle and last layers each refuse different samples."""

from __future__ import annotations

import torch
from torch import nn

# Rows with this value are refused by the first, middle or last such layer, and by none before.
FIRST, MIDDLE, LAST = 1e6, 1e4, float("nan")


class Refuses(nn.Module):
    """Refuses values above a limit, or NaN if the limit is NaN."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            refused = x.isnan() if self._limit != self._limit else x.abs() > self._limit
            if refused.any():
                raise ValueError(f"refused beyond {self._limit}")
        return x.clone()


def refuses() -> nn.Module:
    """Return a model from [b, 4] to [b, 4] with refusing layers at its start, middle and end."""
    torch.manual_seed(0)
    first, second, third, fourth = (nn.Linear(4, 4) for _ in range(4))
    layers = [Refuses(1e5), first, second, Refuses(100), third, fourth, Refuses(LAST)]
    return nn.Sequential(*layers).eval()
