"""Placement of ranks on the GPUs of one host: one rank per GPU, or several if there are too few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from pipepar.comm.gpu.nccl import Nccl, Version
from pipepar.errors import WireError
from pipepar.host.devices import SHARING

_SHARES: Final[Version] = (2, 30, 3)
# For ranks that share a GPU: few blocks for each, since waiting kernels of a rank block others.
_SHARED: Final[Mapping[str, str]] = {
    SHARING: "1",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_MAX_CTAS": "2",
}

NO_GPU: Final = "torch sees no CUDA device"


class NoPlace(Exception):
    """The ranks cannot be placed on the GPUs of this host; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs and the NCCL of this process."""

    count: int
    """The number of GPUs."""
    nccl: Version | None
    """The version of the loaded libnccl; None if there is none."""

    @staticmethod
    def seen() -> Gpus:
        """Return those of this process; does not start CUDA."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        try:
            return Gpus(count, Nccl.load().version)
        except WireError:
            return Gpus(count, None)


@dataclass(frozen=True, slots=True)
class Placement:
    """A placement of ranks on the GPUs of one host."""

    words: str
    """A description for the output of benchmarks."""
    shared: bool
    """Whether several ranks share a GPU."""
    env: Mapping[str, str]
    """The environment variables that the ranks need."""


def place(ranks: int, gpus: Gpus) -> Placement:
    """Return a placement of ranks on GPUs.

    Args:
        ranks: the number of ranks, all of which compute on a GPU.
        gpus: the GPUs of this host.

    Raises:
        NoPlace: there is no GPU, or there are too few and NCCL does not support sharing.
    """
    if gpus.count == 0:
        raise NoPlace(NO_GPU)
    if ranks <= gpus.count:
        return Placement(f"{_ranks(ranks)}, one GPU a rank", False, {})
    few = f"{_ranks(ranks)} on {gpus.count} GPU{'s' * (gpus.count > 1)}"
    if gpus.nccl is None:
        raise NoPlace(f"{few}: they would have to share, and there is no libnccl to ask")
    found = ".".join(map(str, gpus.nccl))
    if gpus.nccl < _SHARES:
        raise NoPlace(f"{few}: they would have to share, from NCCL 2.30.3 on; this one is {found}")
    return Placement(f"{few}, shared (NCCL {found})", True, _SHARED)


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"
