"""Parameters and buffers of a module, by all their names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

SAMPLE_BYTES: Final = 4096
"""Bytes of each tensor in a fingerprint; few suffice, because training changes all of a tensor."""


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's parameters and buffers.

    Args:
        module: the module.

    Returns:
        The tensors by name; a tied one appears under each of its names.
    """
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def named_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's parameters and persistent buffers: the tensors in its checkpoint.

    Args:
        module: the module.

    Returns:
        The tensors by name; a tied one appears under each of its names.
    """
    omitted = _non_persistent_names(module)
    return {name: tensor for name, tensor in named_tensors(module).items() if name not in omitted}


def passing_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's non-persistent buffers, which are not in its checkpoint.

    Args:
        module: the module.

    Returns:
        The buffers by name; a shared one appears under each of its names.
    """
    names = _non_persistent_names(module)
    return {name: tensor for name, tensor in named_tensors(module).items() if name in names}


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have equal shapes, dtypes and values; NaN equals NaN.

    Args:
        one: a tensor with values.
        other: another one, on the same device.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def fingerprint_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a digest that differs for tensors with other names, shapes, dtypes or values.

    Args:
        tensors: tensors with values, by name.

    Returns:
        SHA-256 of names, shapes and dtypes, and of `SAMPLE_BYTES` from the middle of each tensor,
        in hexadecimal digits.
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


def _non_persistent_names(module: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, owner in module.named_modules(remove_duplicate=False)
        for name in owner._non_persistent_buffers_set
    }
