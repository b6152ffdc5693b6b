"""Copies of a module without the values of its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.model.fake_tensors import without_values
from pipepar.model.module_tensors import named_weights


def to_meta(module: nn.Module) -> nn.Module:
    """Return a copy of a module with its weights on meta; other buffers are shared.

    Args:
        module: the module; not modified.

    Returns:
        The copy; tied weights stay tied.

    Raises:
        InputError: the module contains an object that cannot be copied.
    """
    try:
        memo: dict[int, torch.Tensor] = {id(tensor): tensor for tensor in module.buffers()}
        memo |= {id(tensor): without_values(tensor) for tensor in named_weights(module).values()}
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}), "
            f"expected a module that copy.deepcopy accepts; remove locks, files and handles from "
            f"it, run a lazy layer once, replace torch.nn.utils.weight_norm by that of "
            f"torch.nn.utils.parametrizations, or pass a factory and a checkpoint (--weights)"
        ) from error
