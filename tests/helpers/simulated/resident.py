"""Tensors in the memory of a simulated GPU, which torch must not compute on directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pipepar.microbatch import TensorSpec

if TYPE_CHECKING:
    from tests.helpers.simulated.gpu import SimulatedGpu


class Resident(torch.Tensor):
    """A tensor in the memory of a simulated GPU; each GPU has its own subclass.

    Views and new tensors are of the same class. Resolving a lazy conjugation or negation is
    launched on `compute`. All other computing and writing raises TypeError, since it would happen
    at once, while a GPU does it later.
    """

    gpu: ClassVar[SimulatedGpu]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name == "new_empty_strided":
            return cls._strided(*args[1:], **kwargs)
        lazy = name == "resolve_conj" and args[0].is_conj()
        if lazy or (name == "resolve_neg" and args[0].is_neg()):
            return cls._resolved(args[0], torch.conj if lazy else torch.neg)
        if name.endswith("_") and not name.endswith("__") and name != "set_":
            raise TypeError(f"{name} writes to {cls.gpu.name}'s memory at once: use launch")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if not isinstance(result, torch.Tensor):
                return result
            if result.numel() and _storage(result) != _storage(args[0]):
                raise TypeError(f"{name} computes on {cls.gpu.name} at once: use launch")
            return result.as_subclass(cls)

    @classmethod
    def _strided(
        cls, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        nbytes = TensorSpec(dtype, shape, stride).extent * dtype.itemsize
        return cls.gpu.empty(nbytes).view(dtype).as_strided(shape, stride)

    @classmethod
    def _resolved(cls, lazy: torch.Tensor, function: Any) -> torch.Tensor:
        gpu = cls.gpu
        plain = gpu.empty(lazy.nbytes).view(lazy.dtype).view(lazy.shape)
        # An alias has the bytes without the lazy conjugation or negation.
        gpu.launch(
            gpu.compute,
            lambda old, new: new.copy_(function(old)),
            [lazy],
            [plain],
            function.__name__,
        )
        return plain


def _storage(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None
