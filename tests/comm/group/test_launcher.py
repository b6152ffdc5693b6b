"""The variables of launchers, wrong launches, and usage errors, which only rank 0 reports."""

import sys
from pathlib import Path

import pytest

from pipepar.comm.group.launcher import (
    launch_problem,
    launched,
    launcher_local_rank,
    launcher_rank,
    torchrun_problem,
)
from tests.helpers.cluster.mpirun import finish, mpirun, run_ranks, start

pytestmark = pytest.mark.long(12)

# In order of priority.
VARIABLES = (
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    "SLURM_PROCID",
)
LOCAL_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "PMI_LOCAL_RANK",
    "FLUX_TASK_LOCAL_ID",
    "SLURM_LOCALID",
)

SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "FLUX_JOB_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
TORCHRUN = {"RANK": "2", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}

# The variables of a launcher, the MPI library that has one rank, and a part of the remedy.
MISTAKES = [
    # srun --mpi=none: MPI is not initialised, so the library is unknown
    ({"SLURM_STEP_NUM_TASKS": "4"}, "", "srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH"),
    # srun --mpi=pmi2
    ({"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, "Open MPI v5.0.11", "srun --mpi=pmix"),
    # srun --mpi=pmix, which sets no variable with the size
    ({"SLURM_STEP_NUM_TASKS": "4"}, "Intel(R) MPI Library 2021.13", "I_MPI_PMI_LIBRARY"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "MPICH Version: 4.1", "srun --mpi=pmi2"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "MPI VERSION : CRAY MPICH version 8.1", "--mpi=cray_shasta"),
    # MPICH's mpiexec on two nodes has two daemons; on four, both sizes are 4
    ({"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "4"}, "Open MPI v5.0.11", "MPI4PY_LIBMPI"),
    (
        {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0"},
        "Open MPI v5.0.11",
        "MPI4PY_LIBMPI",
    ),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "MPICH Version: 4.1", "MPI4PY_LIBMPI"),
    ({"FLUX_JOB_SIZE": "4", "PMI_SIZE": "4"}, "Open MPI v5.0.11", "flux run -o pmi=pmix"),
    (TORCHRUN, "", "mpirun -n 4 pipepar"),
]

# The other ranks find the error first. If they exited, the launcher would end rank 0 as well.
LATE_ROOT = """
import sys, time
from pipepar.comm.group.launcher import launcher_rank
time.sleep(2 * (launcher_rank() == 0))
from pipepar.cli.app import main
main()
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *LOCAL_VARIABLES, *SIZES, *TORCHRUN, "PMI_FD"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_without_a_launcher() -> None:
    assert launcher_rank() == 0
    assert launcher_local_rank() is None
    assert not launched()


@pytest.mark.parametrize("name", VARIABLES)
def test_the_rank_of_every_launcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert launcher_rank() == 3


def test_mpi_variables_have_priority_over_batch_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    assert launcher_rank() == 5


@pytest.mark.parametrize("name", LOCAL_VARIABLES)
def test_the_local_rank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert launcher_local_rank() == 0
    for later in LOCAL_VARIABLES[LOCAL_VARIABLES.index(name) + 1 :]:
        monkeypatch.setenv(later, "9")
    assert launcher_local_rank() == 0


# MPICH, Intel MPI, PALS and Flux set PMI_RANK; the variables of a batch system do not suffice.
@pytest.mark.parametrize(
    ("name", "starts_mpi"), [(name, name not in VARIABLES[4:]) for name in VARIABLES]
)
def test_launched_by_a_launcher_with_mpi(
    name: str, starts_mpi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert launched() == starts_mpi


def test_values_that_are_not_numbers_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "")
    monkeypatch.setenv("SLURM_LOCALID", "none")
    assert launcher_rank() == 0
    assert launcher_local_rank() is None


@pytest.mark.parametrize(("variables", "library", "remedy"), MISTAKES)
def test_ranks_that_mpi_does_not_connect_are_refused(
    variables: dict[str, str], library: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    problem = launch_problem(library)
    assert problem is not None
    assert "started 4 " in problem
    assert remedy in problem
    assert library in problem


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        # mpirun -n 1 inside a job of two nodes: the tasks are its daemons
        {"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "1"},
        # a script that sets only some of torchrun's variables
        {"RANK": "0", "WORLD_SIZE": "4"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        # a batch script that sets them for torch, in a job of one rank
        {**TORCHRUN, "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_rank_alone_is_accepted(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch_problem() is None


def test_the_rank_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert launcher_rank() == 0  # RANK without the others does not count
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launcher_rank() == 2
    assert not launched()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launcher_rank() == 0


def test_torchrun_in_a_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun_problem() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert torchrun_problem() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "torchrun started 2 processes" in (torchrun_problem() or "")


def test_a_run_under_torchrun_is_refused(tmp_path: Path, rows: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]
    run = ["pipepar", "run", "tests.helpers.factories:mlp", str(rows), str(tmp_path / "out.npy")]
    ended = finish(start([*torchrun, *run], {"COLUMNS": "200"}), 60)
    assert ended.status == 1, ended.output
    assert "error: torchrun, or a script that sets its variables, started 2" in ended.output
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--modle", "x"], "No such option: --modle"),
        (["run", "model"], "Missing argument"),
        (["run", "m", "i", "o", "--depth", "0"], "Invalid value"),
        (["rum"], "No such command"),
    ],
)
def test_a_usage_error_is_reported_once(arguments: list[str], message: str) -> None:
    ended = run_ranks(3, ["-m", "pipepar", *arguments], 60)
    assert ended.status == 2, ended.output
    assert ended.output.count(message) == 1, ended.output


def test_a_usage_error_is_reported_even_if_rank_0_starts_last() -> None:
    ended = finish(start([*mpirun(3), sys.executable, "-c", LATE_ROOT, "run", "--modle"]), 60)
    assert ended.status == 2, ended.output
    assert ended.output.count("No such option: --modle") == 1, ended.output
