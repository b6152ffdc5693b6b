"""The decision of the batch scripts to requeue their job; Slurm's commands are stand-ins."""

import signal
import time
from pathlib import Path

import pytest

from tests.helpers.cluster.mpirun import Finished, finish, start

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ["slurm.sbatch", "slurm-mpirun.sbatch"]
STANDINS = {
    "squeue": "echo RUNNING",
    "scontrol": 'echo "called: $*"',
    "mpirun": 'eval "$RANKS"',
    "srun": """case " $* " in *" --overlap "*) for node in $RESPONDING; do
        case " $* " in *" --nodes=$node "*) exit 0 ;; esac; done; exit 1 ;; esac; eval "$RANKS" """,
}
REQUEUED = "called: requeue 7\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in STANDINS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in {"JOB_ID": 7, "JOB_NUM_NODES": 2, "NTASKS": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def run_script(script: str, ranks: str, responding: str) -> Finished:
    """Run a batch script for a job of two nodes.

    Args:
        script: its name.
        ranks: the shell command that stands for the ranks.
        responding: the numbers of nodes for which srun succeeds, separated by spaces.
    """
    env = {"RANKS": ranks, "RESPONDING": responding}
    return finish(start([str(LAUNCH / script), "model"], env), 30)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_that_lost_a_node_is_requeued(script: str) -> None:
    found = run_script(script, "exit 14", "1")
    assert found.status == 14
    assert "a node does not respond; requeueing job 7" in found.output
    assert found.output.endswith(REQUEUED)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("status", [0, 14])
@pytest.mark.parametrize("responding", ["1 2", ""], ids=["all", "none"])
def test_other_jobs_are_not_requeued(script: str, status: int, responding: str) -> None:
    """If not even the first node responds, srun itself does not work and proves nothing."""
    assert run_script(script, f"exit {status}", responding) == Finished(status, "")


@pytest.mark.usefixtures("slurm")
def test_status_0_of_mpirun_does_not_hide_a_lost_node() -> None:
    """mpirun may exit with 0 after the loss of a node."""
    assert run_script(SCRIPTS[1], "exit 0", "1").output.endswith(REQUEUED)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_signal_before_the_ranks_have_handlers_requeues_the_job(
    script: str, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    env = {"RANKS": f"touch {started}; exec sleep 60", "RESPONDING": "1 2"}
    job = start([str(LAUNCH / script), "model"], env)
    deadline = time.monotonic() + 30
    while not (started.exists() and has_handler(job.pid)):
        assert time.monotonic() < deadline, finish(job, 0).output
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    found = finish(job, 30)
    assert found.status == 75, found.output
    assert found.output.endswith(REQUEUED)


def has_handler(process: int) -> bool:
    """Return whether a process handles SIGUSR1."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)
