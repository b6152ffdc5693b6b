"""Who a process is before MPI, and that one rank speaks for all about a usage error."""

import sys

import pytest

from benchmarks.ranks import finish, mpirun, run_ranks, start
from pipepar.comm.launcher import launcher_rank

VARIABLES = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")

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
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher() -> None:
    assert launcher_rank() == 0


@pytest.mark.parametrize("name", VARIABLES)
def test_every_launcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert launcher_rank() == 3


def test_an_mpis_number_counts_before_the_batch_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    assert launcher_rank() == 5


def test_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "")
    assert launcher_rank() == 0


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
