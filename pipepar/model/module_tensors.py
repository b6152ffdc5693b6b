"""The tensors that a module holds, by every name they have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

SAMPLE_BYTES: Final = 4096
"""Of a tensor, what tells it from others; training changes all of it."""


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers.

    Args:
        module: the module.

    Returns:
        The tensors; a tied one appears under each of its names.
    """
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def named_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and persistent buffers: what a checkpoint holds.

    Args:
        module: the module.

    Returns:
        The tensors; a tied one appears under each of its names.
    """
    passing = _passing_names(module)
    return {name: tensor for name, tensor in named_tensors(module).items() if name not in passing}


def passing_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's buffers that no checkpoint holds.

    Args:
        module: the module.

    Returns:
        The buffers, by every name they have.
    """
    passing = _passing_names(module)
    return {name: tensor for name, tensor in named_tensors(module).items() if name in passing}


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same, NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def fingerprint_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """What tells tensors from others.

    Args:
        tensors: with values, by name.

    Returns:
        SHA-256 of their names, shapes and dtypes, and of some bytes of each one's middle.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        flat = tensor.detach().reshape(-1)
        size = min(len(flat), SAMPLE_BYTES // tensor.dtype.itemsize)
        begin = (len(flat) - size) // 2
        middle = flat[begin : begin + size].cpu().clone()
        digest.update(middle.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _passing_names(module: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules(remove_duplicate=False)
        for name in owner._non_persistent_buffers_set
    }
