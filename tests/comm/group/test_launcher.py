"""Who a process is before MPI, and that one rank speaks for all about a usage error."""

import sys
from pathlib import Path

import pytest

from pipepar.comm.group.launcher import (
    launched,
    launcher_local_rank,
    launcher_rank,
    refusal,
    torchrun_below_a_rank,
)
from tests.helpers.cluster.mpirun import finish, mpirun, run_ranks, start

pytestmark = pytest.mark.long(12)

# Each before those that it counts before.
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

# What else a launcher sets, the MPI that sees one rank, and what is advised.
MISTAKES = [
    # srun --mpi=none: no MPI was asked, nobody says which it would be
    ({"SLURM_STEP_NUM_TASKS": "4"}, "", "srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH"),
    # srun --mpi=pmi2
    ({"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, "Open MPI v5.0.11", "srun --mpi=pmix"),
    # srun --mpi=pmix, which sets no size of its own
    ({"SLURM_STEP_NUM_TASKS": "4"}, "Intel(R) MPI Library 2021.13", "I_MPI_PMI_LIBRARY"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "MPICH Version: 4.1", "srun --mpi=pmi2"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "MPI VERSION : CRAY MPICH version 8.1", "--mpi=cray_shasta"),
    # MPICH's mpiexec on two nodes, two daemons; on four, where the numbers are the same
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

# The other ranks find the error first; if they ended then, the launcher would end rank 0 too.
LATE = """
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


def test_without_a_launcher() -> None:
    assert launcher_rank() == 0
    assert launcher_local_rank() is None
    assert not launched()


@pytest.mark.parametrize("name", VARIABLES)
def test_every_launcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert launcher_rank() == 3


def test_an_mpis_number_counts_before_the_batch_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    assert launcher_rank() == 5


@pytest.mark.parametrize("name", LOCAL_VARIABLES)
def test_the_number_on_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert launcher_local_rank() == 0
    for later in LOCAL_VARIABLES[LOCAL_VARIABLES.index(name) + 1 :]:
        monkeypatch.setenv(later, "9")
    assert launcher_local_rank() == 0


# Those of PMI stand for MPICH, Intel, PALS and Flux; a batch system alone speaks to no MPI.
@pytest.mark.parametrize(
    ("name", "speaks"), [(name, name not in VARIABLES[4:]) for name in VARIABLES]
)
def test_who_speaks_to_an_mpi(name: str, speaks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert launched() == speaks


def test_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "")
    monkeypatch.setenv("SLURM_LOCALID", "none")
    assert launcher_rank() == 0
    assert launcher_local_rank() is None


@pytest.mark.parametrize(("variables", "library", "advice"), MISTAKES)
def test_ranks_that_an_mpi_does_not_know_of(
    variables: dict[str, str], library: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    reason = refusal(library)
    assert reason is not None
    assert "started 4 " in reason
    assert advice in reason
    assert library in reason


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        # mpirun -n 1 inside a job of two nodes: the tasks are its daemons
        {"SLURM_STEP_NUM_TASKS": "2", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "1"},
        # half of what torchrun sets, as scripts do
        {"RANK": "0", "WORLD_SIZE": "4"},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        # a batch script that sets them for torch, and an MPI of one rank all the same
        {**TORCHRUN, "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_who_is_alone(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert refusal() is None


def test_the_number_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert launcher_rank() == 0  # one variable of that name says nothing
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launcher_rank() == 2
    assert not launched()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert launcher_rank() == 0


def test_torchrun_below_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchrun_below_a_rank() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert torchrun_below_a_rank() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "torchrun made 2 processes" in (torchrun_below_a_rank() or "")


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
def test_a_usage_error_is_told_once(arguments: list[str], message: str) -> None:
    ended = run_ranks(3, ["-m", "pipepar", *arguments], 60)
    assert ended.status == 2, ended.output
    assert ended.output.count(message) == 1, ended.output


def test_also_if_the_first_rank_is_the_last_to_start() -> None:
    ended = finish(start([*mpirun(3), sys.executable, "-c", LATE, "run", "--modle"]), 60)
    assert ended.status == 2, ended.output
    assert ended.output.count("No such option: --modle") == 1, ended.output
