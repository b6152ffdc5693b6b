"""The tensors of a micro-batch in one piece of a GPU's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from pipepar.comm.gpu import Gpu
from pipepar.comm.memory import Leg, laid_out, legs_of, packed, whole
from pipepar.comm.slots import Part
from pipepar.comm.wire import Spec
from pipepar.microbatch import Value


@dataclass(frozen=True, slots=True)
class Packing:
    """How the tensors of a micro-batch lie in one piece of the GPU's memory."""

    legs: tuple[Leg, ...]
    """The tensors."""
    begins: tuple[int, ...]
    """Where each begins, in bytes."""
    nbytes: int
    """What they take in all."""

    @classmethod
    def of(cls, spec: Spec) -> Packing:
        """Of the tensors of a spec. *Local.*"""
        legs = legs_of(spec)
        return cls(legs, *packed(legs))

    def parts(self, values: tuple[Value, ...]) -> list[Part]:
        """What of these values goes where."""
        return [
            (begin, whole(leg, values[leg.position]))  # type: ignore[arg-type]
            for leg, begin in zip(self.legs, self.begins, strict=True)
        ]

    def unpacked(self, memory: torch.Tensor, gpu: Gpu) -> Iterator[tuple[int, torch.Tensor]]:
        """The position of each tensor among the values, and the tensor over that memory."""
        copy = partial(gpu.copy, stream=gpu.compute)
        for leg, begin in zip(self.legs, self.begins, strict=True):
            yield leg.position, laid_out(leg, memory[begin : begin + leg.nbytes], copy)
