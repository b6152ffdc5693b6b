"""Who a process is before MPI, and that one rank speaks for all about a usage error."""

import sys

import pytest

from benchmarks.ranks import finish, mpirun, run_ranks, start
from pipepar.comm.launcher import launcher_local_rank, launcher_rank
from pipepar.comm.world import launched

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

# The other ranks find the error first; if they ended then, the launcher would end rank 0 too.
LATE = """
import sys, time
from pipepar.comm.launcher import launcher_rank
time.sleep(2 * (launcher_rank() == 0))
from pipepar.cli.app import main
main()
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *LOCAL_VARIABLES, "PMI_FD"):
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
