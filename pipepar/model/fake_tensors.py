"""Meta and fake tensors, to trace a model before its weights are read.

They have the strides of the original, unless it has holes between its elements or is expanded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipepar.model.compat.torch_internals import EXPORT_LOGGERS, FakeTensor, FakeTensorMode


def meta_parameter(param: nn.Parameter) -> nn.Parameter:
    """Return a parameter on meta with the same shape, strides, dtype and requires_grad.

    torch selects the kernel of a matrix product by requires_grad even under no_grad, and kernels
    round differently.

    Args:
        param: any parameter.

    Returns:
        The parameter on meta; `param` itself if it is on meta, so that tied parameters stay tied.
    """
    if param.is_meta:
        return param
    return nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)


@contextmanager
def faked(module: nn.Module, mode: FakeTensorMode, device: torch.device) -> Iterator[None]:
    """Replace a module's parameters and buffers by fake tensors inside the context.

    Meta tensors would not do: where a model creates a tensor on the device of a weight, the graph
    would create it on meta. Tied tensors stay tied. The original tensors are restored at the end,
    also after an error.

    Args:
        module: the module; its tensors are replaced in place.
        mode: the mode of the fake tensors.
        device: the device of the fake tensors.
    """
    fakes: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fakes:
            fakes[id(tensor)] = fake_tensor(tensor, mode, device)
        return fakes[id(tensor)]

    originals = [
        (owner, name, tensor)
        for owner in module.modules()
        for name, tensor in {**owner._parameters, **owner._buffers}.items()
        if tensor is not None
    ]
    try:
        # setattr instead of the dictionaries: recurrent layers have a second list of their weights.
        for owner, name, tensor in originals:
            setattr(owner, name, fake(tensor))
        yield
    finally:
        for owner, name, tensor in originals:
            setattr(owner, name, tensor)


def fake_tensor(tensor: torch.Tensor, mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    """Return a fake tensor with the shape, strides and dtype of another tensor.

    Args:
        tensor: the other tensor.
        mode: the mode of the fake tensor.
        device: the device of the fake tensor.

    Returns:
        The fake tensor; a parameter without gradient if `tensor` is a parameter.
    """
    fake = FakeTensor(mode, tensor.detach().to("meta"), device)
    return nn.Parameter(fake, requires_grad=False) if isinstance(tensor, nn.Parameter) else fake


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress all log lines of `EXPORT_LOGGERS`, loggers of torch that report input sizes."""
    logs = [logging.getLogger(name) for name in EXPORT_LOGGERS]
    for log in logs:
        log.addFilter(_drop)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


def without_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight on meta with the same shape, strides and dtype.

    Args:
        tensor: a parameter or a buffer.

    Returns:
        A parameter as by `meta_parameter`, or a plain tensor for a buffer.
    """
    if isinstance(tensor, nn.Parameter):
        return meta_parameter(tensor)
    return tensor.detach().to("meta")
