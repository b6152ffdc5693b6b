"""The scripts in launch/: arguments and exit status. test_slurm.py runs those of Slurm."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.cluster.mpirun import Finished, environment, finish, start
from tests.helpers.jobs.command import pipepar

pytestmark = pytest.mark.long(20)

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
SHELL = [*SCRIPTS, *sorted((ROOT / "tests").rglob("*.sh"))]
BIN = Path(sys.executable).parent
PATIENT = str(ROOT / "tests/helpers/cluster/patient.sh")
# The tests start more ranks than there are cores.
MPIRUN = f"{BIN / 'mpirun'} --oversubscribe"


def script(name: str, *arguments: object, env: dict[str, str] | None = None) -> Finished:
    command = [str(LAUNCH / name), *map(str, arguments)]
    return finish(start(command, {"MPIRUN": MPIRUN} | (env or {})), 60)


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """Return a node file of PBS: one line per rank, with its host."""
    path = tmp_path / "nodes"
    path.write_text("localhost\n" * 3)
    return path


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck_accepts_the_scripts(path: Path) -> None:
    checked = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_shellcheck_accepts_the_image() -> None:
    image = (LAUNCH / "pipepar.def").read_text()
    assert image.startswith("Bootstrap: ")
    post = image.partition("\n%post\n")[2].partition("\n%environment\n")[0]
    checked = subprocess.run(
        [BIN / "shellcheck", "--shell=sh", "-"],
        input=post.replace("{{ ", "").replace(" }}", ""),
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    files = image.partition("\n%files\n")[2].partition("\n%post\n")[0].split()[::2]
    assert all((ROOT / name).exists() for name in files)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_without_arguments_prints_its_usage(path: Path) -> None:
    ended = script(path.name)
    assert ended.status == 2
    assert f"launch/{path.name} MODEL INPUT OUTPUT" in ended.output
    assert "# Environment variables:" in ended.output
    assert "set -" not in ended.output


def test_a_run_on_this_machine(rows: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one.npy", tmp_path / "many.npy"
    job = ("tests.helpers.factories:mlp", rows, many, "--micro-batch=4", "--device=cpu")
    env = {"PIPEPAR": f"{sys.executable} -m pipepar", "RANKS": "2"}
    ended = script("local.sh", *job, env=env)
    assert ended.status == 0, ended.output
    assert "on 2 ranks, 1 host" in ended.output
    status, output = pipepar("run", "tests.helpers.factories:mlp", rows, one, "--micro-batch", 4)
    assert status == 0, output
    assert np.array_equal(np.load(one), np.load(many))


@pytest.mark.parametrize("name", ["local.sh", "pbs.sh"])
def test_the_exit_status_is_that_of_the_program(name: str, nodes: Path) -> None:
    env = {"PBS_NODEFILE": str(nodes), "PIPEPAR": f"{sys.executable} -c raise(SystemExit(3))"}
    assert script(name, "model", env=env).status == 3


@pytest.mark.parametrize(("name", "number"), [("local.sh", "USR1"), ("pbs.sh", "TERM")])
def test_a_signal_stops_the_job(name: str, number: str, nodes: Path, tmp_path: Path) -> None:
    env = {"MPIRUN": MPIRUN, "PIPEPAR": PATIENT, "PBS_NODEFILE": str(nodes), "RANKS": "3"}
    output = tmp_path / "output"
    with output.open("w") as out:
        command = [str(LAUNCH / name), "model", "a file"]
        job = subprocess.Popen(command, env=environment(env), stdout=out, start_new_session=True)
        try:
            end = time.monotonic() + 30
            while output.read_text().count("given: [run] [model] [a file]\n") < 3:
                assert time.monotonic() < end, output.read_text()
                time.sleep(0.1)
            job.send_signal(getattr(signal, f"SIG{number}"))
            assert job.wait(timeout=30) == 75
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


def test_a_pbs_job_stops_after_stop_after(nodes: Path, tmp_path: Path) -> None:
    env = {"PIPEPAR": PATIENT, "PBS_NODEFILE": str(nodes), "PBS_O_WORKDIR": str(tmp_path)}
    job = {"MODEL": "model", "INPUT": "a file", "OUTPUT": "o", "OPTIONS": "--depth 3"}
    ended = script("pbs.sh", env={**env, **job, "STOP_AFTER": "3"})
    assert ended.status == 75, ended.output
    assert ended.output.count("given: [run] [model] [a file] [o] [--depth] [3]\n") == 3


def test_the_command_of_flux(tmp_path: Path) -> None:
    flux = tmp_path / "flux"
    flux.write_text('#!/bin/sh\nif [ "$1" = getattr ]; then echo 2; else echo "$@"; exit 75; fi\n')
    flux.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FLUX_URI": "local://", "PMI": "simple"}
    ended = script("flux.sh", "model", "in", "out", env={**env, "RANKS_PER_NODE": "4"})
    assert ended.status == 75
    for words in ("run --nodes=2 --tasks-per-node=4", "-o pmi=simple", "--signal=USR1@120s"):
        assert words in ended.output
    assert ended.output.endswith(" pipepar run model in out\n")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "--cpu-bind=none pipepar run m i o"),
        (
            {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "4"},
            "--cpu-bind=cores pipepar run m i o --device cuda",
        ),
        (
            {"SLURM_GPUS_ON_NODE": "4", "DEVICE": "auto", "SLURM_RESTART_COUNT": "2"},
            "--cpu-bind=none pipepar run m i o --device auto --resume",
        ),
    ],
)
def test_the_command_of_srun(variables: dict[str, str], expected: str, tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$SLURM_MPI_TYPE $SRUN_CPUS_PER_TASK" "$@"\n')
    srun.chmod(0o755)
    env = {"SRUN": str(srun), "SLURM_JOB_ID": "1", **variables}
    ended = script("slurm.sbatch", "m", "i", "o", env=env)
    cpus = variables.get("SLURM_CPUS_PER_TASK", "")
    assert ended.output == f"pmix {cpus} --kill-on-bad-exit=1 {expected}\n"
