"""Strings that travel beside tensors: one uint8 tensor holds those of a whole micro-batch."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch


def pack_strings(strings: Sequence[str]) -> torch.Tensor:
    """Put strings into a tensor.

    Args:
        strings: one a sample.

    Returns:
        uint8 [bytes], JSON in ASCII, so that even a file name that is no UTF-8 survives.
    """
    return torch.frombuffer(bytearray(json.dumps(list(strings)).encode()), dtype=torch.uint8)


def unpack_strings(packed: torch.Tensor) -> list[str]:
    """Take the strings out again.

    Args:
        packed: what `pack_strings` returned, on any device.

    Returns:
        The strings, one a sample.
    """
    strings: list[str] = json.loads(packed.cpu().numpy().tobytes())
    return strings
