"""An image classifier for CIFAR-10: six convolutions and three dense layers, 968,394 parameters.

It computes the same as the Keras model that demo/fetch_images.py converts. Dropout and the pooling
of single pixels are left out, since they have no effect at inference.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Pixels(nn.Module):
    """Converts images to float; values stay 0 to 255, as in training."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return images of any dtype, [B, 3, 32, 32], as float32."""
        return images.float()


def make() -> nn.Sequential:
    """Return the network: images [B, 3, 32, 32] of 0 to 255 -> scores [B, 10], 0 or more."""
    return nn.Sequential(
        Pixels(),
        *convolution(3, 64),  # [B, 64, 30, 30]
        *convolution(64, 64),
        nn.MaxPool2d(2),  # [B, 64, 14, 14]
        *convolution(64, 128),
        *convolution(128, 128),
        nn.MaxPool2d(2),  # [B, 128, 5, 5]
        *convolution(128, 64),
        *convolution(64, 64),  # [B, 64, 1, 1]
        # Keras flattens channels last. With one pixel left, the order is the same.
        nn.Flatten(),
        *dense(64, 1024),
        *dense(1024, 512),
        *dense(512, len(CLASSES)),
    ).eval()


def convolution(channels: int, filters: int) -> tuple[nn.Module, ...]:
    """Return a 3 x 3 convolution without padding, a ReLU and a batch norm."""
    # The eps is Keras's default; torch's is smaller.
    return nn.Conv2d(channels, filters, 3), nn.ReLU(), nn.BatchNorm2d(filters, eps=1e-3)


def dense(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a dense layer and its ReLU; as in training, the last layer has one too."""
    return nn.Linear(inputs, outputs), nn.ReLU()
