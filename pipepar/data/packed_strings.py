"""The strings of a micro-batch, encoded as one uint8 tensor."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch


def pack_strings(strings: Sequence[str]) -> torch.Tensor:
    """Encode strings as a tensor.

    Args:
        strings: one per sample.

    Returns:
        uint8 [bytes], on the CPU: JSON in ASCII, which also preserves file names that are not
        UTF-8.
    """
    return torch.frombuffer(bytearray(json.dumps(list(strings)).encode()), dtype=torch.uint8)


def unpack_strings(packed: torch.Tensor) -> list[str]:
    """Decode the strings.

    Args:
        packed: the result of `pack_strings`, on any device.

    Returns:
        The strings, one per sample.
    """
    strings: list[str] = json.loads(packed.cpu().numpy().tobytes())
    return strings
