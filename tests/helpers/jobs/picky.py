"""A model whose first, middle and last layers each refuse other samples."""

from __future__ import annotations

import torch
from torch import nn

# Rows filled with these are refused by that layer, and by none before it.
FIRST, MIDDLE, LAST = 1e6, 1e4, float("nan")


class Refuses(nn.Module):
    """Cannot bear values that large, or none that is no number."""

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
    """[b, 4] to [b, 4]; what is first and last in it is in the first and the last stage."""
    torch.manual_seed(0)
    first, second, third, fourth = (nn.Linear(4, 4) for _ in range(4))
    layers = [Refuses(1e5), first, second, Refuses(100), third, fourth, Refuses(LAST)]
    return nn.Sequential(*layers).eval()
