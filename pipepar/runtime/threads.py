"""How many threads a rank computes with."""

from __future__ import annotations

import os

import torch

from pipepar.comm.world import World


def claim_threads(world: World) -> int:
    """Give this rank its share of the host's cores, and return how many. *Local.*

    What its binding leaves it, divided by the ranks bound to the same cores; OMP_NUM_THREADS, where
    the user has set it, is left alone.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        mine = set(world.cores[world.rank])
        sharers = sum(bool(mine & set(cores)) for cores in world.cores.values())
        torch.set_num_threads(max(1, len(mine) // sharers))
    return torch.get_num_threads()


def crowded(world: World) -> str | None:
    """A warning where this host has more ranks than cores to run them on, else None. *Local.*"""
    cores = set().union(*world.cores.values())
    if len(world.cores) <= len(cores):
        return None
    ranks = ", ".join(map(str, world.cores))
    return (
        f"ranks {ranks} share {len(cores)} core{'s' * (len(cores) > 1)} on {world.host}: they will "
        "slow each other; start fewer ranks there, or bind each to cores of its own "
        "(mpirun --bind-to core, srun --cpu-bind=cores)"
    )
