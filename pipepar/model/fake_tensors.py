"""Tensors without memory: how a model is traced before its weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipepar.model.compat.torch_internals import EXPORT_LOGGERS, FakeTensor, FakeTensorMode


def meta_parameter(param: nn.Parameter) -> nn.Parameter:
    """A parameter's shape, strides and dtype without its storage.

    Args:
        param: any parameter; one that is on meta already is returned as it is, so ties survive.

    Returns:
        A parameter on meta. Whether it needs a gradient stays: even where none is computed, torch
        picks the kernel of a matrix product by that, and kernels round differently.
    """
    if param.is_meta:
        return param
    return nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)


@contextmanager
def faked(module: nn.Module, mode: FakeTensorMode, device: torch.device) -> Iterator[None]:
    """Inside, the module's parameters and buffers are fakes that claim a device.

    Tracing on meta itself would bake the meta device into what the graph creates. Tied tensors
    stay tied. The module's own tensors are put back at the end, also after an error.

    Args:
        module: the module; its tensors are exchanged in place.
        mode: the mode that the fakes belong to.
        device: the device that they claim to be on.
    """
    fakes: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fakes:
            fakes[id(tensor)] = fake_tensor(tensor, mode, device)
        return fakes[id(tensor)]

    held = list(_held(module))
    try:
        # setattr and not the dictionaries: recurrent layers keep a second list of their weights.
        for owner, name, tensor in held:
            setattr(owner, name, fake(tensor))
        yield
    finally:
        for owner, name, tensor in held:
            setattr(owner, name, tensor)


def fake_tensor(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    """A fake of the same shape, strides and dtype that claims a device.

    Args:
        tensor: the tensor to imitate; a parameter gives a parameter.
        mode: the mode that the fake belongs to.
        device: the device that it claims to be on.

    Returns:
        The fake.
    """
    fake = FakeTensor(mode, tensor.detach().to("meta"), device)
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, torch does not log each size that a model refuses, or that tracing fixes."""
    logs = [logging.getLogger(name) for name in EXPORT_LOGGERS]
    for log in logs:
        log.addFilter(_nothing)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _held(module: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for owner in module.modules():
        for name, tensor in {**owner._parameters, **owner._buffers}.items():
            if tensor is not None:
                yield owner, name, tensor


def without_values(tensor: torch.Tensor) -> torch.Tensor:
    """A weight on meta, of the same shape, strides and dtype.

    Args:
        tensor: a parameter or a buffer.

    Returns:
        A parameter, or a plain tensor for a buffer.
    """
    if isinstance(tensor, nn.Parameter):
        return meta_parameter(tensor)
    return tensor.detach().to("meta")
