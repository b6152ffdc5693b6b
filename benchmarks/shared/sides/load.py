"""The load of a comparison: the inputs and the computation, the same for every side."""

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
_TAG: Final = 5
_MESSAGES: Final = 6
# Rounds of two trials. Their difference does not contain the fixed cost of a micro-batch.
_TRIAL_ROUNDS: Final = (4, 44)


class Work(nn.Module):
    """A fixed amount of computation, with a result of the size of its input.

    The first rows are multiplied repeatedly by a matrix; the other rows are copied. The matrix is
    orthogonal, so that values neither overflow nor vanish.

    Args:
        rounds: the number of matrix products.
        width: the columns of the input and of the matrix.
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
    """A stream of micro-batches through two ranks that do the same work."""

    parts: tuple[torch.Tensor, ...]
    """Different inputs, float32 [b, ...], which are used cyclically."""
    microbatches: int
    """The number of micro-batches in one pass."""
    work: nn.Module
    """The computation of each rank for a micro-batch; nn.Identity for none."""

    @classmethod
    def of(
        cls, nbytes: int, microbatches: int, work: nn.Module | None = None, ring: int = 8
    ) -> Load:
        """Return a load with micro-batches of `nbytes` bytes, the same on every rank.

        Args:
            nbytes: the bytes of a micro-batch, a multiple of 256.
            microbatches: the number of micro-batches in one pass.
            work: the computation; none if left out.
            ring: the number of different inputs.
        """
        rows, width = shape_of(nbytes)
        noise = torch.Generator().manual_seed(nbytes)
        parts = tuple(torch.randn(1, rows, width, generator=noise) for _ in range(ring))
        return cls(parts, microbatches, work or nn.Identity())

    def part(self, index: int) -> torch.Tensor:
        """Return the input of a micro-batch."""
        return self.parts[index % len(self.parts)]

    def require(self, side: str, outputs: list[torch.Tensor]) -> None:
        """Compare the outputs of a side, on the last rank.

        Raises:
            ValueError: an output is missing or wrong.
        """
        expected = [self.work(self.work(part)) for part in self.parts]
        if len(outputs) < len(expected):
            raise ValueError(f"{side}: {len(outputs)} outputs, expected {len(expected)} or more")
        for index, output in enumerate(outputs):
            if not torch.equal(output, expected[index % len(expected)]):
                raise ValueError(f"{side}: the output of micro-batch {index} is wrong")


def shape_of(nbytes: int) -> tuple[int, int]:
    """Return the rows and columns of a micro-batch of `nbytes` bytes, a multiple of 256."""
    width = 256 if nbytes >= 1 << 18 else 64
    return nbytes // _FLOAT_BYTES // width, width


def timed(comm: MPI.Intracomm, action: Callable[[], object]) -> float:
    """Return the seconds from a common start until the slowest rank is done. *Collective.*"""
    comm.Barrier()
    begin = time.perf_counter()
    action()
    slowest = array("d", [time.perf_counter() - begin])
    comm.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    return slowest[0]


def calibrated(comm: MPI.Intracomm, nbytes: int, seconds: float) -> Work:
    """Return work of about `seconds` seconds, the same on every rank. *Collective.*"""
    rows, width = shape_of(nbytes)
    x = torch.randn(1, rows, width)
    few, many = (
        min(timed(comm, lambda work=work: work(x)) for _ in range(12))  # type: ignore[misc]
        for work in (Work(rounds, width) for rounds in _TRIAL_ROUNDS)
    )
    a_round = (many - few) / (_TRIAL_ROUNDS[1] - _TRIAL_ROUNDS[0])
    fixed = few - _TRIAL_ROUNDS[0] * a_round
    return Work(max(1, round((seconds - fixed) / a_round)), width)


def transfer_seconds(comm: MPI.Intracomm, nbytes: int) -> float:
    """Return the seconds of one message from rank 0 to rank 1, without computing. *Collective.*"""
    memory = torch.zeros(nbytes, dtype=torch.uint8)
    spec = [MPI.buffer.fromaddress(memory.data_ptr(), nbytes), MPI.BYTE]

    def transfer(count: int) -> None:
        for _ in range(count):
            if comm.rank == 0:
                comm.Ssend(spec, 1, _TAG)
            else:
                comm.Recv(spec, 0, _TAG)

    transfer(2)
    return timed(comm, lambda: transfer(_MESSAGES)) / _MESSAGES
