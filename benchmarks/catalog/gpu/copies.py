"""Copies between pinned memory and a GPU, alone and during computation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from benchmarks.catalog.gpu.pipeline import Size, timed
from pipepar.comm.gpu.cuda import Gpu
from pipepar.engine.device_to_host import copied_to_host
from pipepar.engine.host_to_device import HostToDevice
from pipepar.microbatch import MicroBatch, Value
from pipepar.trace import Tracer

_AHEAD: Final = 2


class Copies:
    """Copies of micro-batches to a GPU and back, and about as much computation.

    Args:
        gpu: the GPU.
        size: the micro-batches.
    """

    def __init__(self, gpu: Gpu, size: Size) -> None:
        self._gpu, self._count = gpu, size.microbatches
        sample = size.sample()
        flat = sample.flatten().view(torch.uint8)
        self._host = gpu.pinned(flat.nbytes).copy_(flat).view(sample.dtype).view(sample.shape)
        (self._resident,) = HostToDevice(gpu)((self._host,))
        weight = torch.eye(size.width, dtype=torch.bfloat16)
        (self._weight,) = HostToDevice(gpu)((weight,))
        self._layers = 1
        for _ in range(2):  # the first time warms up
            copying = self._run(copies=True, computing=False)
            computing = self._run(copies=False, computing=True)
        self._layers = max(1, round(copying / computing))

    def turn(self) -> list[float]:
        """Return the seconds of computing alone, of copies alone, and of both at once."""
        return [self._run(False, True), self._run(True, False), self._run(True, True)]

    def _run(self, copies: bool, computing: bool) -> float:
        upload = HostToDevice(self._gpu)

        def results() -> Iterator[MicroBatch]:
            for index in range(self._count):
                (x,) = upload((self._host,)) if copies else (self._resident,)
                yield MicroBatch(index, (self._computed(x) if computing else x,))

        def stream() -> None:
            made = results()
            for _ in copied_to_host(made, self._gpu, _AHEAD, Tracer(0)) if copies else made:
                pass

        return timed(self._gpu, stream)

    def _computed(self, x: Value) -> Value:
        for _ in range(self._layers):
            x = x @ self._weight  # type: ignore[operator]
        return x


def hidden_share(first: float, second: float, both: float) -> float:
    """Return how much of the shorter of two activities overlaps with the longer: 0 to 1.

    Args:
        first: the seconds of the first alone.
        second: the seconds of the second alone.
        both: the seconds of both at once.
    """
    return (first + second - both) / min(first, second)


def hidden_shares(turns: Sequence[Sequence[float]]) -> list[float]:
    """Return `hidden_share` for each repetition."""
    return [hidden_share(*turn) for turn in turns]
