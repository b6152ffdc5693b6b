"""What joins two ranks, measured by itself, and where they run."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Final

import torch
from mpi4py import MPI

from benchmarks.load import timed

_TAG: Final = 5
_MESSAGES: Final = 6


def transfer_seconds(comm: MPI.Intracomm, nbytes: int) -> float:
    """Seconds for one message from rank 0 to rank 1 while neither computes. *Collective.*"""
    memory = torch.zeros(nbytes, dtype=torch.uint8)
    spec = [MPI.buffer.fromaddress(memory.data_ptr(), nbytes), MPI.BYTE]

    def pass_on(count: int) -> None:
        for _ in range(count):
            if comm.rank == 0:
                comm.Ssend(spec, 1, _TAG)
            else:
                comm.Recv(spec, 0, _TAG)

    pass_on(2)
    return timed(comm, lambda: pass_on(_MESSAGES)) / _MESSAGES


def pin(comm: MPI.Intracomm) -> None:
    """Give each of several hosts that are one machine in truth a core of its own. *Collective.*

    Real hosts have their own cores already, and are left alone: hosts are one machine where they
    were started by the same boot.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()[:36]
    boots = bytearray(36 * comm.size)
    comm.Allgather([array("b", boot), MPI.CHAR], [boots, MPI.CHAR])
    cores = sorted(os.sched_getaffinity(0))
    if len({bytes(boots[at : at + 36]) for at in range(0, len(boots), 36)}) > 1:
        return
    pin_to(cores[comm.rank % len(cores)])


def pin_to(core: int) -> None:
    """Keep this process, and what it starts, on one core."""
    for thread in os.listdir("/proc/self/task"):  # MPI has started some of its own already
        os.sched_setaffinity(int(thread), {core})
