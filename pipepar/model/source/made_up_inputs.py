"""Example inputs for a plan without an input file; a plan depends on sizes and dtypes only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import torch

from pipepar.errors import InputError

Example: TypeAlias = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]
"""Positional and keyword arguments of a model."""

TOKEN_INPUTS: Final = ("input_ids", "attention_mask")
"""The input names of a text model whose tokenizer is not available."""

_BATCH: Final = 2  # tracing treats a size of 1 as a constant
_LENGTH: Final = 128
_PIXELS: Final = 224
_SHAPE: Final = re.compile(
    r"((?P<name>\w+)=)?(?P<sizes>[1-9]\d*(x[1-9]\d*)*)(:(?P<dtype>\w+))?", re.ASCII
)


def shaped_example(shapes: Iterable[str]) -> Example:
    """Return arguments of the shapes that the user specifies.

    Args:
        shapes: [NAME=]SIZExSIZE...[:DTYPE] for each argument, such as 2x512:int64 or
            pixel_values=2x3x224x224. The default dtype is float32; an argument without a name is
            positional.

    Returns:
        Tensors of zeros.

    Raises:
        InputError: a shape or a dtype cannot be parsed, or a name is given twice.
    """
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for shape in shapes:
        name, tensor = _shaped(shape)
        if name is None:
            args.append(tensor)
        elif kwargs.setdefault(name, tensor) is not tensor:
            raise InputError(f"--shape {shape}: found {name} twice; give each argument once")
    return tuple(args), kwargs


def _shaped(shape: str) -> tuple[str | None, torch.Tensor]:
    """Parse one shape; return the argument's name, None if it is positional, and zeros."""
    found = _SHAPE.fullmatch(shape)
    dtype = getattr(torch, found["dtype"] or "float32", None) if found else None
    if found is None or not isinstance(dtype, torch.dtype):
        raise InputError(
            f"--shape {shape} cannot be read, expected [NAME=]SIZExSIZE...[:DTYPE]; write for "
            "example input_ids=2x128:int64, or 2x512 for a positional float32"
        )
    sizes = [int(size) for size in found["sizes"].split("x")]
    return found["name"], torch.zeros(sizes, dtype=dtype)


def text_example(config: Any, names: Sequence[str] = TOKEN_INPUTS) -> Example:
    """Return tokens for a transformers model.

    Args:
        config: its configuration.
        names: the names of its tokenizer's outputs, in order.

    Returns:
        Keyword arguments of ones, int64 [2, S]. S is 128, or the number of the model's positions if
        that is smaller. An encoder-decoder also gets `decoder_input_ids`.

    Raises:
        InputError: the configuration does not describe tokens (no `vocab_size`).
    """
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise _unknown(config, "tokens")
    positions = getattr(config, "max_position_embeddings", None)
    length = min(_LENGTH, positions) if isinstance(positions, int) else _LENGTH
    if config.is_encoder_decoder:
        names = (*names, "decoder_input_ids")
    return (), {name: torch.ones(_BATCH, length, dtype=torch.int64) for name in names}


def picture_example(config: Any, dtype: torch.dtype) -> Example:
    """Return pictures for a transformers model.

    Args:
        config: its configuration.
        dtype: the dtype that the model computes in.

    Returns:
        `pixel_values` of zeros, [2, channels, height, width]. Height and width are 224 if the
        configuration has no `image_size`.

    Raises:
        InputError: the configuration does not describe pictures (no `num_channels`).
    """
    channels = getattr(config, "num_channels", None)
    if not isinstance(channels, int):
        raise _unknown(config, "pictures")
    size = getattr(config, "image_size", None) or _PIXELS
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return (), {"pixel_values": torch.zeros(_BATCH, channels, height, width, dtype=dtype)}


def _unknown(config: Any, kind: str) -> InputError:
    """Return the error for a configuration that does not describe tokens or pictures (`kind`)."""
    return InputError(
        f"the configuration of a {config.model_type} model does not describe {kind}, "
        f"expected a model that takes {kind} only; give --shape NAME=SIZExSIZE:DTYPE for each "
        "input, --input, or another --task"
    )
