"""The tensors of a micro-batch in one piece of a GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from pipepar.comm.channels.memory import TensorLayout, laid_out, packed, tensor_layouts, whole
from pipepar.comm.channels.spec import Spec
from pipepar.comm.gpu.cuda import Gpu
from pipepar.comm.gpu.slots import Part
from pipepar.microbatch import Value


@dataclass(frozen=True, slots=True)
class Packing:
    """How the tensors of a micro-batch lie in one piece of the GPU's memory."""

    tensors: tuple[TensorLayout, ...]
    """The tensors."""
    begins: tuple[int, ...]
    """Where each begins, in bytes."""
    nbytes: int
    """What they take in all."""

    @classmethod
    def of(cls, spec: Spec) -> Packing:
        """Of the tensors of a spec."""
        tensors = tensor_layouts(spec)
        return cls(tensors, *packed(tensors))

    def parts(self, values: tuple[Value, ...]) -> list[Part]:
        """What of these values goes where."""
        return [
            (begin, whole(tensor_layout, values[tensor_layout.position]))  # type: ignore[arg-type]
            for tensor_layout, begin in zip(self.tensors, self.begins, strict=True)
        ]

    def unpacked(self, memory: torch.Tensor, gpu: Gpu) -> Iterator[tuple[int, torch.Tensor]]:
        """The position of each tensor among the values, and the tensor over that memory."""
        copy = partial(gpu.copy, stream=gpu.compute)
        for tensor_layout, begin in zip(self.tensors, self.begins, strict=True):
            yield (
                tensor_layout.position,
                laid_out(tensor_layout, memory[begin : begin + tensor_layout.nbytes], copy),
            )
