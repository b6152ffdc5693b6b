"""The layout of a micro-batch's tensors in one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from pipepar.comm.channels.memory import (
    TensorLayout,
    packed,
    tensor_from_buffer,
    tensor_layouts,
    whole,
)
from pipepar.comm.channels.spec import Spec
from pipepar.comm.gpu.cuda import Gpu
from pipepar.comm.gpu.slots import Part
from pipepar.microbatch import Value


@dataclass(frozen=True, slots=True)
class Packing:
    """The offsets of a micro-batch's tensors in one buffer."""

    tensors: tuple[TensorLayout, ...]
    begins: tuple[int, ...]
    """The offset of each tensor, in bytes."""
    nbytes: int
    """The size of the buffer, in bytes."""

    @classmethod
    def of(cls, spec: Spec) -> Packing:
        """Return the packing of the tensors of a spec."""
        tensors = tensor_layouts(spec)
        return cls(tensors, *packed(tensors))

    def parts(self, values: tuple[Value, ...]) -> list[Part]:
        """Return the values that are tensors in the spec, each with its offset.

        Args:
            values: the values that the spec describes, as returned by `plain`.

        Returns:
            Pairs of an offset and a view for copying: the bytes of the tensor, or its elements if
            it has holes between them; see `whole`.
        """
        return [
            (begin, whole(tensor_layout, values[tensor_layout.position]))  # type: ignore[arg-type]
            for tensor_layout, begin in zip(self.tensors, self.begins, strict=True)
        ]

    def unpacked(self, memory: torch.Tensor, gpu: Gpu) -> Iterator[tuple[int, torch.Tensor]]:
        """Unpack the tensors in a buffer.

        Args:
            memory: uint8 [nbytes] or more, packed in this way.
            gpu: the GPU of the memory.

        Yields:
            The position of each tensor among the values, and the tensor: a view of the memory. A
            tensor with holes between its elements is a copy, made on the compute stream.
        """
        copy = partial(gpu.copy, stream=gpu.compute)
        for tensor_layout, begin in zip(self.tensors, self.begins, strict=True):
            yield (
                tensor_layout.position,
                tensor_from_buffer(
                    tensor_layout, memory[begin : begin + tensor_layout.nbytes], copy
                ),
            )
