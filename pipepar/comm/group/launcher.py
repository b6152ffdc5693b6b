"""What a launcher tells its processes by environment variables, before there is any MPI.

launch/README.md has the table of launchers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

ROOT: Final = 0
"""The rank that decides where one must; see `Group.root`. A process knows its rank before MPI."""

# Of Open MPI and PMIx launchers; of MPICH's, Intel's, PALS's and Flux's, and srun's PMI-2; of
# MVAPICH2's.
RANK_VARIABLES: Final = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
"""Where a launcher writes each rank's number, where it speaks to an MPI."""

# Set for every rank by each launcher that speaks to an MPI.
_LAUNCHER_VARIABLES: Final = (*RANK_VARIABLES, "PMI_FD")

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
# How many ranks there are. An MPI's own launcher is believed first: below it the batch systems'
# numbers are those of its daemons.
_SIZE: Final = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "FLUX_JOB_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
# What each MPI asks of srun, by how it calls itself; Cray's is an MPICH too.
_SRUN: Final = {
    "Open MPI": "--mpi=pmix",
    "CRAY": "--mpi=cray_shasta",
    "Intel": "--mpi=pmi2, with I_MPI_PMI_LIBRARY set to Slurm's libpmi2.so",
    "MPICH": "--mpi=pmi2",
    "MVAPICH": "--mpi=pmi2",
}


def launched() -> bool:
    """Whether a launcher started this process as a rank."""
    return any(name in os.environ for name in _LAUNCHER_VARIABLES)


def launcher_rank() -> int:
    """This process's number by its launcher, 0 where there is none; starts no MPI."""
    return _first_number((*_RANK, "RANK") if _torch_size() else _RANK) or 0


def is_launched_root() -> bool:
    """Whether this process is the root by its launcher's number; starts no MPI."""
    return launcher_rank() == ROOT


def launcher_local_rank() -> int | None:
    """This process's number on its host by its launcher, None where none says so."""
    return _first_number(_LOCAL_RANK)


def refusal(library: str = "") -> str | None:
    """Why a process that MPI takes for the only one is not alone, and what to do.

    Args:
        library: how the MPI that said so calls itself; empty where none was asked.

    Returns:
        None where it may go on alone.
    """
    name = next((name for name in _SIZE if os.environ.get(name, "").isdecimal()), None)
    if name is not None and int(os.environ[name]) > 1:
        found = f"the launcher started {os.environ[name]} ranks ({name})"
        return f"{found}, but MPI sees only this one; {_remedy(name, library)}"
    size = _torch_size()
    if name is None and size > 1:
        return (
            f"torchrun, or a script that sets its variables, started {size} processes "
            "(WORLD_SIZE), but pipepar's ranks need an MPI: start them with "
            f"mpirun -n {size} pipepar ..., or with srun"
        )
    return None


def torchrun_below_a_rank() -> str | None:
    """Why a rank that torchrun made several processes of cannot be one rank."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" not in os.environ or not count.isdecimal() or int(count) < 2:
        return None
    return (
        f"torchrun made {count} processes (LOCAL_WORLD_SIZE) of one MPI rank: leave torchrun out, "
        f"and let mpirun or srun start {count} times as many ranks"
    )


def _remedy(name: str, library: str) -> str:
    uses = f"mpi4py uses {library}; " if library else ""
    if _counted_by("FLUX_JOB_SIZE", name):
        return f"{uses}start it with flux run -o pmi=pmix for Open MPI, flux run for MPICH"
    # Slurm speaks PMI-2 as the launchers of MPICH and Intel do, but does not count a host's ranks.
    if not _counted_by("SLURM_STEP_NUM_TASKS", name) or "MPI_LOCALRANKID" in os.environ:
        return f"{uses}set MPI4PY_LIBMPI to the library of your mpirun"
    asked = next((option for sort, option in _SRUN.items() if sort in library), None)
    if asked:
        return f"{uses}start it with srun {asked}"
    each = ", ".join(f"{_SRUN[sort]} for {sort}" for sort in ("Open MPI", "MPICH"))
    return f"start them with srun {each} (srun --mpi=list shows what there is)"


def _counted_by(batch_system: str, name: str) -> bool:
    """Whether a number is the batch system's own, under its name or as it tells it by PMI."""
    value = os.environ.get(batch_system)
    return name == batch_system or (name == "PMI_SIZE" and os.environ[name] == value)


def _torch_size() -> int:
    """How many processes torchrun's variables tell of, 0 where they are not set."""
    numbers = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    return int(numbers[-1]) if all(number.isdecimal() for number in numbers) else 0


def _first_number(names: Iterable[str]) -> int | None:
    numbers = (os.environ.get(name, "") for name in names)
    return next((int(number) for number in numbers if number.isdecimal()), None)
