"""The number of threads of a rank, and the sharing of cores by ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import torch

from pipepar.comm.world import World


def claim_threads(world: World) -> int:
    """Set torch's number of threads in this rank to its share of the cores, and return it.

    The share is the number of cores that the rank is bound to, divided by the number of ranks that
    are bound to any of them, and at least 1. Hardware threads of one core count as one core. If
    OMP_NUM_THREADS is set, torch's number is returned unchanged. Does not communicate.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        mine = cores_behind(world.cores[world.rank])
        sharers = sum(bool(mine & cores_behind(cpus)) for cpus in world.cores.values())
        torch.set_num_threads(max(1, len(mine) // sharers))
    return torch.get_num_threads()


def shared_cores_warning(world: World) -> str | None:
    """Return a warning if ranks of this host are `overloaded`, else None. Does not communicate."""
    found = overloaded({rank: cores_behind(cpus) for rank, cpus in world.cores.items()})
    if found is None:
        return None
    ranks, cores = found
    return (
        f"ranks {', '.join(map(str, ranks))} share {cores} core{'s' * (cores > 1)} on "
        f"{world.host}: they will slow each other down; start fewer ranks there, or bind each to "
        "cores of its own (mpirun --bind-to core, srun --cpu-bind=cores)"
    )


def overloaded(cores_of: Mapping[int, Set[str]]) -> tuple[list[int], int] | None:
    """Return ranks of a host that share fewer cores than there are ranks, and the number of cores.

    For the cores of each rank, in order, and then for the cores of all ranks, it counts the ranks
    that are bound to these cores only. Other sets of cores are not considered.

    Args:
        cores_of: the cores that each rank of the host is bound to.

    Returns:
        The ranks and the number of cores for the first set of cores with more ranks than cores;
        None if there is none.
    """
    for cores in [*cores_of.values(), frozenset[str]().union(*cores_of.values())]:
        within = [rank for rank, own in cores_of.items() if own <= cores]
        if len(within) > len(cores):
            return within, len(cores)
    return None


def cores_behind(cpus: Iterable[int]) -> frozenset[str]:
    """Return the cores of logical CPUs; a core is identified by its list of hardware threads."""
    return frozenset(map(_siblings, cpus))


def _siblings(cpu: int) -> str:
    """Return the list of the hardware threads of a logical CPU's core, such as "0,64"."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:  # the kernel does not report it: treat every CPU as a core
        return str(cpu)
