"""The number of threads of a rank."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from pipepar.comm.world import World


def claim_threads(world: World) -> int:
    """Set the number of threads of this rank to its share of the cores, and return it.

    The share is the number of cores that the rank is bound to, divided by the ranks that are bound
    to any of them. Hardware threads of one core count as one. OMP_NUM_THREADS takes precedence.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        mine = cores_behind(world.cores[world.rank])
        sharers = sum(bool(mine & cores_behind(cpus)) for cpus in world.cores.values())
        torch.set_num_threads(max(1, len(mine) // sharers))
    return torch.get_num_threads()


def crowded(world: World) -> str | None:
    """Return a warning if ranks of this host share a core, else None."""
    bound = {rank: cores_behind(cpus) for rank, cpus in world.cores.items()}
    for cores in [*bound.values(), frozenset[str]().union(*bound.values())]:
        within = [rank for rank, own in bound.items() if own <= cores]
        if len(within) > len(cores):
            ranks = ", ".join(map(str, within))
            return (
                f"ranks {ranks} share {len(cores)} core{'s' * (len(cores) > 1)} on {world.host}: "
                "they will slow each other down; start fewer ranks there, or bind each to cores of "
                "its own (mpirun --bind-to core, srun --cpu-bind=cores)"
            )
    return None


def cores_behind(cpus: Iterable[int]) -> frozenset[str]:
    """Return the cores of logical CPUs; a core is identified by its list of hardware threads."""
    return frozenset(map(_siblings, cpus))


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # the kernel does not report it: treat every CPU as a core
        return str(cpu)
