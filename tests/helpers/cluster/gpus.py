"""Where ranks go among this machine's GPUs: one each if they suffice, else several on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from pipepar.comm.gpu.nccl import Nccl, Version
from pipepar.errors import WireError
from pipepar.host.devices import SHARING

_SHARES: Final[Version] = (2, 30, 3)
# Where ranks share a GPU, waiting kernels of one keep others off it: few blocks each.
_SHARED: Final[Mapping[str, str]] = {
    SHARING: "1",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_MAX_CTAS": "2",
}

NO_GPU: Final = "torch sees no CUDA device"


class NoPlace(Exception):
    """That many ranks have no place on this machine's GPUs; says why."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What this process sees."""

    count: int
    """GPUs."""
    nccl: Version | None
    """What the libnccl in the process says of itself; None where there is none."""

    @staticmethod
    def seen() -> Gpus:
        """Look; starts CUDA on none of them."""
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        try:
            return Gpus(count, Nccl.load().version)
        except WireError:
            return Gpus(count, None)


@dataclass(frozen=True, slots=True)
class Placement:
    """How ranks are placed on one machine."""

    words: str
    """For a reader of figures."""
    shared: bool
    """Whether several ranks are on one GPU."""
    env: Mapping[str, str]
    """What their environment needs for it."""


def place(ranks: int, gpus: Gpus) -> Placement:
    """Choose.

    Args:
        ranks: how many, all of which compute on a GPU.
        gpus: what there is.

    Raises:
        NoPlace: there is no GPU, or too few and a NCCL that lets nobody share one.
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
