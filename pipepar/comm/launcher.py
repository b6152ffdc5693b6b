"""What a launcher tells its processes by environment variables, before there is any MPI."""

from __future__ import annotations

import os
from typing import Final

# Of Open MPI and PMIx launchers, of MPICH's and Intel's, and of srun's PMI-2.
RANK_VARIABLES: Final = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Where a launcher writes each rank's number, where it speaks to an MPI."""


def launcher_rank() -> int:
    """This process's number by its launcher, 0 where there is none; starts no MPI. *Local.*"""
    # Slurm's comes last: below its daemons, mpirun's ranks inherit the daemon's number.
    for name in (*RANK_VARIABLES, "SLURM_PROCID"):
        number = os.environ.get(name, "")
        if number.isdecimal():
            return int(number)
    return 0
