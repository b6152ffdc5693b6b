"""What a launcher tells its processes by environment variables, before there is any MPI."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

# Of Open MPI and PMIx launchers; of MPICH's, Intel's, PALS's and Flux's, and srun's PMI-2; of
# MVAPICH2's.
RANK_VARIABLES: Final = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
"""Where a launcher writes each rank's number, where it speaks to an MPI."""

# In both of these the batch systems' own come last, Slurm's after Flux's: below their daemons, the
# ranks of an mpirun, or of a Flux that Slurm started, inherit the daemon's number.
_RANK: Final = (*RANK_VARIABLES, "PALS_RANKID", "FLUX_TASK_RANK", "SLURM_PROCID")
_LOCAL_RANK: Final = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "PMI_LOCAL_RANK",
    "FLUX_TASK_LOCAL_ID",
    "SLURM_LOCALID",
)


def launcher_rank() -> int:
    """This process's number by its launcher, 0 where there is none; starts no MPI. *Local.*"""
    return _first_number(_RANK) or 0


def launcher_local_rank() -> int | None:
    """This process's number on its host by its launcher, None where none says so. *Local.*"""
    return _first_number(_LOCAL_RANK)


def _first_number(names: Iterable[str]) -> int | None:
    numbers = (os.environ.get(name, "") for name in names)
    return next((int(number) for number in numbers if number.isdecimal()), None)
