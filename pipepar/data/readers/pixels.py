"""Preparation of pictures or arrays of pixels as the pixel_values of a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from pipepar.data.readers.prepared import Prepare
from pipepar.errors import InputError

Processor: TypeAlias = Callable[..., Any]
"""A Hugging Face image processor: takes ``images`` and returns tensors by name."""


def process_pictures(processor: Processor) -> Prepare:
    """Return a function for `open_prepared` that applies a processor to pictures.

    Args:
        processor: the model's image processor.
    """
    return lambda pictures: processor(images=pictures, return_tensors="pt")


def process_arrays(processor: Processor) -> Prepare:
    """Return a function for `open_prepared` that applies a processor to an array of pixels.

    Its argument is a file's only array, uint8 [B, H, W, 3] or [B, 3, H, W]. It raises InputError
    for another shape.

    Args:
        processor: the model's image processor.
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
    """Return a file's only array, unchanged, under the name ``pixel_values``.

    Args:
        rows: a tensor [B, ...], or a dict with one such tensor.
    """
    return {"pixel_values": _only(rows)}


def _only(rows: Any) -> torch.Tensor:
    if isinstance(rows, torch.Tensor):
        return rows
    (tensor,) = rows.values()
    return tensor  # type: ignore[no-any-return]
