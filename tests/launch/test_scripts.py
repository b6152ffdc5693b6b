"""What the batch scripts do once their ranks have ended; Slurm's commands are stand-ins."""

import signal
import time
from pathlib import Path

import pytest

from tests.helpers.cluster.mpirun import Finished, finish, start

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ["slurm.sbatch", "slurm-mpirun.sbatch"]
STANDINS = {
    "squeue": "echo RUNNING",
    "scontrol": 'echo "asked: $*"',
    "mpirun": 'eval "$RANKS"',
    "srun": """case " $* " in *" --overlap "*) for node in $ANSWERS; do
        case " $* " in *" --nodes=$node "*) exit 0 ;; esac; done; exit 1 ;; esac; eval "$RANKS" """,
}
REQUEUED = "asked: requeue 7\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in STANDINS.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in {"JOB_ID": 7, "JOB_NUM_NODES": 2, "NTASKS": 4}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


def ended(script: str, ranks: str, answers: str) -> Finished:
    """How a job of two nodes ends, of which so many answer."""
    env = {"RANKS": ranks, "ANSWERS": answers}
    return finish(start([str(LAUNCH / script), "model"], env), 30)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", SCRIPTS)
def test_ranks_that_fail_without_a_node_go_on_later(script: str) -> None:
    found = ended(script, "exit 14", "1")
    assert found.status == 14
    assert "a node does not respond; requeueing job 7" in found.output
    assert found.output.endswith(REQUEUED)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("status", [0, 14])
@pytest.mark.parametrize("answers", ["1 2", ""], ids=["all", "none"])
def test_ranks_that_end_otherwise_do_not(script: str, status: int, answers: str) -> None:
    """Where no node at all answers, this srun cannot be asked."""
    assert ended(script, f"exit {status}", answers) == Finished(status, "")


@pytest.mark.usefixtures("slurm")
def test_mpirun_is_not_believed_without_a_node() -> None:
    """It may end with 0 when it has lost one."""
    assert ended(SCRIPTS[1], "exit 0", "1").output.endswith(REQUEUED)


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("script", SCRIPTS)
def test_ranks_that_are_warned_before_they_listen_go_on_later(script: str, tmp_path: Path) -> None:
    up = tmp_path / "up"
    env = {"RANKS": f"touch {up}; exec sleep 60", "ANSWERS": "1 2"}
    job = start([str(LAUNCH / script), "model"], env)
    deadline = time.monotonic() + 30
    while not (up.exists() and listens(job.pid)):
        assert time.monotonic() < deadline, finish(job, 0).output
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    found = finish(job, 30)
    assert found.status == 75, found.output
    assert found.output.endswith(REQUEUED)


def listens(process: int) -> bool:
    """Whether it has a trap for SIGUSR1."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGUSR1 - 1) & 1)
