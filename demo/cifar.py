"""A small classifier of images for CIFAR-10: six convolutions and three dense layers.

It has 968,394 parameters and computes what the Keras model does that demo/fetch_images.py converts.
What Keras has besides, dropout and a pooling of single pixels, changes nothing at inference and is
not here.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


class Pixels(nn.Module):
    """Bytes, as images are stored, become floats: still 0 to 255, as the network was trained."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Convert images of any dtype, [B, 3, 32, 32]."""
        return images.float()


def make() -> nn.Sequential:
    """Return the network: images [B, 3, 32, 32] of 0 to 255 to scores [B, 10], none below 0."""
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
        # One pixel is left, so that it does not matter that Keras flattens channels last.
        nn.Flatten(),
        *dense(64, 1024),
        *dense(1024, 512),
        *dense(512, len(CLASSES)),
    ).eval()


def convolution(channels: int, filters: int) -> tuple[nn.Module, ...]:
    """Return one block: 3 x 3 without padding, so that an image loses two rows and two columns."""
    # The eps is Keras's; torch's own is smaller.
    return nn.Conv2d(channels, filters, 3), nn.ReLU(), nn.BatchNorm2d(filters, eps=1e-3)


def dense(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return one dense layer; the last has its ReLU too, as it was trained."""
    return nn.Linear(inputs, outputs), nn.ReLU()
