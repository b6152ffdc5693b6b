"""From pictures, or arrays that look like pictures, to a Hugging Face model's pixel_values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from pipepar.data.readers.prepared import Prepare
from pipepar.errors import InputError

Processor: TypeAlias = Callable[..., Any]
"""A Hugging Face image processor: given ``images``, returns tensors by name."""


def process_pictures(processor: Processor) -> Prepare:
    """Let a processor make the model's arguments of pictures.

    Args:
        processor: the model's own.

    Returns:
        A function for `open_prepared`.
    """
    return lambda pictures: processor(images=pictures, return_tensors="pt")


def process_arrays(processor: Processor) -> Prepare:
    """Let a processor make the model's arguments of pixels.

    Args:
        processor: the model's own.

    Returns:
        A function for `open_prepared`: of a file's one array, uint8 [B, H, W, 3] or [B, 3, H, W].
    """

    def prepare(rows: Any) -> Any:
        pixels = _only(rows)
        if pixels.dim() != 4 or 3 not in (pixels.shape[1], pixels.shape[3]):
            raise InputError(
                f"the input holds uint8 rows of shape {tuple(pixels.shape[1:])}; expected pictures "
                "[height, width, 3] or [3, height, width], 0 to 255. Give them three channels, or "
                "give the model's own pixel_values as floats."
            )
        return processor(images=list(pixels), return_tensors="pt")

    return prepare


def as_pixel_values(rows: Any) -> Any:
    """Name a file's one array ``pixel_values``, as it is.

    Args:
        rows: a tensor [B, ...], or a dict with one.
    """
    return {"pixel_values": _only(rows)}


def _only(rows: Any) -> torch.Tensor:
    if isinstance(rows, torch.Tensor):
        return rows
    (tensor,) = rows.values()
    return tensor  # type: ignore[no-any-return]
