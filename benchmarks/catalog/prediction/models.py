"""Three different models for `pipepar run`, with random weights that are the same everywhere."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, ResNetConfig, ResNetModel

from benchmarks.shared import encoder as encoders

LAYERS: Final = 12
"""The number of layers of the encoder."""


def encoder() -> nn.Module:
    """Return a transformer encoder of equal layers; takes [B, 128, 384]."""
    return encoders.encoder(LAYERS, 384)


class _Named(nn.Module):
    """A model that takes one input by name and returns one output of the model."""

    def __init__(self, model: nn.Module, takes: str, gives: str) -> None:
        super().__init__()
        self.model, self._takes, self._gives = model, takes, gives

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(**{self._takes: x})[self._gives]
        return result


def resnet() -> nn.Module:
    """Return ResNet-50; takes pictures [B, 3, 224, 224]. Layers and crossing bytes differ."""
    torch.manual_seed(0)
    return _Named(ResNetModel(ResNetConfig()), "pixel_values", "pooler_output").eval()


def llama() -> nn.Module:
    """Return a small Llama; takes token ids [B, 128]. A large table, then equal layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8000,
        use_cache=False,
    )
    return _Named(LlamaModel(config), "input_ids", "last_hidden_state").eval()
