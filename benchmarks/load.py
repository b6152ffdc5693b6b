"""What the ranks of a benchmark stream and compute, the same for every side of a comparison."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from mpi4py import MPI
from torch import nn

_FLOAT_BYTES: Final = 4
# Rounds of two trials: their difference is free of what a micro-batch costs beside the rounds.
_TRIAL_ROUNDS: Final = (4, 44)


class Work(nn.Module):
    """Real work of a fixed amount, whose result is as large as its input.

    The first rows are multiplied by a resident matrix again and again, the rest is copied. The
    matrix is orthogonal, so that no number of rounds lets the values overflow or vanish.

    Args:
        rounds: matrix products.
        width: columns of the input, and of the matrix.
    """

    weight: torch.Tensor

    def __init__(self, rounds: int, width: int) -> None:
        super().__init__()
        self.rounds = rounds
        noise = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
        self.register_buffer("weight", torch.linalg.qr(noise)[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute one micro-batch, [1, rows, width] to [1, rows, width]."""
        width = self.weight.shape[0]
        head = x[0, :width]
        for _ in range(self.rounds):
            head = head @ self.weight
        return torch.cat((head.unsqueeze(0), x[:, width:]), dim=1)


@dataclass(frozen=True, slots=True)
class Load:
    """A stream of micro-batches through two ranks that both do the same work."""

    parts: tuple[torch.Tensor, ...]
    """A ring of different inputs, float32 [b, ...], taken in turn."""
    microbatches: int
    """How many are streamed in one pass."""
    work: nn.Module
    """What each rank computes for a micro-batch; nn.Identity for nothing."""

    @classmethod
    def of(
        cls, nbytes: int, microbatches: int, work: nn.Module | None = None, ring: int = 8
    ) -> Load:
        """A load whose micro-batches have a size, the same on every rank."""
        rows, width = shape_of(nbytes)
        noise = torch.Generator().manual_seed(nbytes)
        parts = tuple(torch.randn(1, rows, width, generator=noise) for _ in range(ring))
        return cls(parts, microbatches, work or nn.Identity())

    def part(self, index: int) -> torch.Tensor:
        """The input of a micro-batch."""
        return self.parts[index % len(self.parts)]

    def require(self, side: str, outputs: list[torch.Tensor]) -> None:
        """Check on the last rank that a side's outputs are right.

        Raises:
            ValueError: one is not, naming the side.
        """
        expected = [self.work(self.work(part)) for part in self.parts]
        if len(outputs) < len(expected):
            raise ValueError(f"{side}: {len(outputs)} outputs, expected {len(expected)} or more")
        for index, output in enumerate(outputs):
            if not torch.equal(output, expected[index % len(expected)]):
                raise ValueError(f"{side}: the output of micro-batch {index} is wrong")


def shape_of(nbytes: int) -> tuple[int, int]:
    """Rows and columns of a micro-batch of that many bytes, a multiple of 256."""
    width = 256 if nbytes >= 1 << 18 else 64
    return nbytes // _FLOAT_BYTES // width, width


def timed(comm: MPI.Intracomm, action: Callable[[], object]) -> float:
    """Seconds from a common start until the last rank is through. *Collective.*"""
    comm.Barrier()
    begin = time.perf_counter()
    action()
    slowest = array("d", [time.perf_counter() - begin])
    comm.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    return slowest[0]


def calibrated(comm: MPI.Intracomm, nbytes: int, seconds: float) -> Work:
    """Work of about that many seconds, of the same amount on every rank. *Collective.*"""
    rows, width = shape_of(nbytes)
    x = torch.randn(1, rows, width)
    few, many = (
        min(timed(comm, lambda work=work: work(x)) for _ in range(12))  # type: ignore[misc]
        for work in (Work(rounds, width) for rounds in _TRIAL_ROUNDS)
    )
    a_round = (many - few) / (_TRIAL_ROUNDS[1] - _TRIAL_ROUNDS[0])
    beside = few - _TRIAL_ROUNDS[0] * a_round
    return Work(max(1, round((seconds - beside) / a_round)), width)
