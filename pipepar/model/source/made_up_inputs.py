"""An example of a model's input where nobody gave one: only sizes and dtypes matter to a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import torch

from pipepar.errors import InputError

Example: TypeAlias = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]
"""Positional and keyword arguments of a model."""

TOKEN_INPUTS: Final = ("input_ids", "attention_mask")
"""What a model of text takes as far as one can know without its tokenizer."""

_BATCH: Final = 2  # of 1 one could not tell whether it may vary
_LENGTH: Final = 128
_PIXELS: Final = 224
_SHAPE: Final = re.compile(
    r"((?P<name>\w+)=)?(?P<sizes>[1-9]\d*(x[1-9]\d*)*)(:(?P<dtype>\w+))?", re.ASCII
)


def shaped_example(shapes: Iterable[str]) -> Example:
    """Arguments of the shapes that the user names.

    Args:
        shapes: for each argument [NAME=]SIZExSIZE...[:DTYPE], such as 2x512:int64 or
            pixel_values=2x3x224x224. float32 without a dtype, positional without a name.

    Returns:
        Tensors of zeros.

    Raises:
        InputError: a shape cannot be read, or a name comes twice.
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
    """Tokens for a model of transformers.

    Args:
        config: its configuration.
        names: what its tokenizer gives, in order.

    Returns:
        Keyword arguments, int64 [2, S]: S is 128, or as many positions as the model has. An
        encoder-decoder gets `decoder_input_ids` too.

    Raises:
        InputError: the configuration is of no model that takes tokens alone.
    """
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise _unknown(config, "tokens")
    positions = getattr(config, "max_position_embeddings", None)
    length = min(_LENGTH, positions) if isinstance(positions, int) else _LENGTH
    if config.is_encoder_decoder:
        names = (*names, "decoder_input_ids")
    return (), {name: torch.ones(_BATCH, length, dtype=torch.int64) for name in names}


def picture_example(config: Any, dtype: torch.dtype) -> Example:
    """Pictures for a model of transformers.

    Args:
        config: its configuration.
        dtype: what the model computes in.

    Returns:
        `pixel_values`, [2, channels, height, width]; 224 high and wide if the configuration does
        not say.

    Raises:
        InputError: the configuration is of no model that takes pictures alone.
    """
    channels = getattr(config, "num_channels", None)
    if not isinstance(channels, int):
        raise _unknown(config, "pictures")
    size = getattr(config, "image_size", None) or _PIXELS
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return (), {"pixel_values": torch.zeros(_BATCH, channels, height, width, dtype=dtype)}


def _unknown(config: Any, kind: str) -> InputError:
    return InputError(
        f"the configuration of a {config.model_type} model does not say what {kind} look like, "
        f"expected a model of {kind} alone; give --shape NAME=SIZExSIZE:DTYPE for each input, "
        "--input, or another --task"
    )
