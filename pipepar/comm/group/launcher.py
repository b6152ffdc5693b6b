"""The environment variables of launchers, read without MPI.

launch/README.md has a table of launchers and their variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

ROOT: Final = 0
"""The rank that makes decisions for all ranks; see `Group.root`."""

# The rank, as launchers with MPI support set it: PMIx; Open MPI; PMI, for MPICH, Intel MPI, PALS,
# Flux and srun --mpi=pmi2; MVAPICH2.
_MPI_RANK: Final = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")

# Every launcher with MPI support sets at least one of these for each rank.
_MPI_LAUNCHER: Final = (*_MPI_RANK, "PMI_FD")

# In the next three, the variables of batch systems come last, Slurm's after Flux's. If a batch
# system starts mpirun's daemons, or Slurm starts Flux, ranks inherit the daemons' variables.
_RANK: Final = (*_MPI_RANK, "PALS_RANKID", "FLUX_TASK_RANK", "SLURM_PROCID")
_LOCAL_RANK: Final = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "PMI_LOCAL_RANK",
    "FLUX_TASK_LOCAL_ID",
    "SLURM_LOCALID",
)
_SIZE: Final = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "FLUX_JOB_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
# The srun option for each MPI library, by a part of its version text. The text of Cray MPICH
# contains CRAY and MPICH, so CRAY comes first.
_SRUN: Final = {
    "Open MPI": "--mpi=pmix",
    "CRAY": "--mpi=cray_shasta",
    "Intel": "--mpi=pmi2, with I_MPI_PMI_LIBRARY set to Slurm's libpmi2.so",
    "MPICH": "--mpi=pmi2",
    "MVAPICH": "--mpi=pmi2",
}


def launched() -> bool:
    """Return whether a launcher with MPI support started this process, from its variables.

    False for torchrun, and for srun with --mpi=none.
    """
    return any(name in os.environ for name in _MPI_LAUNCHER)


def launcher_rank() -> int:
    """Return the rank from the launcher's variables; 0 without a launcher.

    The rank that torchrun set counts if no other launcher set one. Does not initialise MPI.
    """
    return _first_number((*_RANK, "RANK") if _torch_size() else _RANK) or 0


def is_launched_root() -> bool:
    """Return whether `launcher_rank` is that of the root; True without a launcher."""
    return launcher_rank() == ROOT


def launcher_local_rank() -> int | None:
    """Return the number of this rank among those of its host, from the launcher's variables.

    None without these variables. Those of torchrun do not count.
    """
    return _first_number(_LOCAL_RANK)


def launch_problem(library: str = "") -> str | None:
    """Return why this process cannot run as a job of one rank, and the remedy.

    Called where MPI has one rank or is not initialised. The launcher may have started several
    processes that MPI does not connect, because the launcher does not fit the MPI library. Each of
    them would run the whole job.

    Args:
        library: the version text of the MPI library; empty if MPI is not initialised.

    Returns:
        An error message; None if this process can run alone.
    """
    name = next((name for name in _SIZE if os.environ.get(name, "").isdecimal()), None)
    if name is not None and int(os.environ[name]) > 1:
        return (
            f"the launcher started {os.environ[name]} ranks ({name}), but MPI sees only this one; "
            f"{_remedy(name, library)}"
        )
    size = _torch_size()
    if name is None and size > 1:
        return (
            f"torchrun, or a script that sets its variables, started {size} processes "
            f"(WORLD_SIZE), but pipepar needs MPI: start the job with mpirun -n {size} pipepar "
            "..., or with srun"
        )
    return None


def torchrun_problem() -> str | None:
    """Return an error message if torchrun started several processes in one rank of MPI."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" not in os.environ or not count.isdecimal() or int(count) < 2:
        return None
    return (
        f"torchrun started {count} processes (LOCAL_WORLD_SIZE) in one MPI rank: remove torchrun, "
        f"and start {count} times as many ranks with mpirun or srun"
    )


def _remedy(name: str, library: str) -> str:
    """Return how to start ranks that MPI connects.

    Args:
        name: the variable in which the launcher set the number of ranks.
        library: the version text of the MPI library, or empty.
    """
    uses = f"mpi4py uses {library}; " if library else ""
    if _is_size_from("FLUX_JOB_SIZE", name):
        return f"{uses}start the job with flux run -o pmi=pmix for Open MPI, flux run for MPICH"
    # srun --mpi=pmi2 sets PMI_SIZE as mpiexec of MPICH and Intel MPI do, but not MPI_LOCALRANKID.
    if not _is_size_from("SLURM_STEP_NUM_TASKS", name) or "MPI_LOCALRANKID" in os.environ:
        return f"{uses}set MPI4PY_LIBMPI to the library of your mpirun"
    option = next((option for part, option in _SRUN.items() if part in library), None)
    if option:
        return f"{uses}start the job with srun {option}"
    options = ", ".join(f"{_SRUN[mpi]} for {mpi}" for mpi in ("Open MPI", "MPICH"))
    return f"start the job with srun {options} (srun --mpi=list lists the supported types)"


def _is_size_from(batch_variable: str, name: str) -> bool:
    """Return whether a batch system may have set the variable `name`.

    Args:
        batch_variable: the batch system's own variable with the number of ranks. The batch system
            may set PMI_SIZE too, to the same number.
        name: the variable in which the launcher set the number of ranks.
    """
    value = os.environ.get(batch_variable)
    return name == batch_variable or (name == "PMI_SIZE" and os.environ[name] == value)


def _torch_size() -> int:
    """Return WORLD_SIZE if torchrun's RANK, LOCAL_RANK and WORLD_SIZE are numbers, otherwise 0."""
    numbers = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    return int(numbers[-1]) if all(number.isdecimal() for number in numbers) else 0


def _first_number(names: Iterable[str]) -> int | None:
    numbers = (os.environ.get(name, "") for name in names)
    return next((int(number) for number in numbers if number.isdecimal()), None)
