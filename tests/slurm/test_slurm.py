"""The batch scripts and what srun does to ranks, in a real Slurm of two hosts."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ranks import Finished
from tests.command import pipepar
from tests.slurm.cluster import Cluster, cluster, obstacle

pytestmark = pytest.mark.slurm

MLP, WIDE, FAILING = (f"tests.factories:{name}" for name in ("mlp", "wide", "raises_last"))
SCRIPTS = ["launch/slurm.sbatch", "launch/slurm-mpirun.sbatch"]
FOUR, TWO = (("--nodes=2", f"--ntasks-per-node={count}", "--time=5") for count in (2, 1))
PATIENT = {"PIPEPAR": "tests/patient.sh"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    with cluster() as up:
        yield up


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((256, 512), dtype=np.float32))
    return path


@pytest.fixture(scope="module")
def limited(slurm: Cluster) -> dict[str, str]:
    """A job of each script whose time is nearly up; Slurm looks for such every 30 seconds.

    So it is asked for long before it is needed.
    """
    arguments = ("model", "a file")
    jobs = {script: slurm.sbatch(*FOUR, script, *arguments, env=PATIENT) for script in SCRIPTS}
    for job in jobs.values():
        until_all_work(slurm, job)
        near = ("scontrol", "update", f"JobId={job}", "EndTime=now+122seconds")
        assert slurm.run(*near).status == 0
    return jobs


def srun(slurm: Cluster, mpi: str, *arguments: object) -> Finished:
    return slurm.run("srun", *TWO, f"--mpi={mpi}", "pipepar", *arguments)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_has_the_output_of_one_process(
    script: str, slurm: Cluster, samples: Path, tmp_path: Path
) -> None:
    one, many = tmp_path / "one.npy", tmp_path / "many.npy"
    status, output = pipepar("run", WIDE, samples, one, "--micro-batch", 16)
    assert status == 0, output
    job = slurm.sbatch(*FOUR, script, WIDE, samples, many, "--micro-batch=16")
    found = slurm.wait(job)
    assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), slurm.output(job)
    assert "4 ranks, 2 hosts" in slurm.output(job)
    assert np.array_equal(np.load(one), np.load(many))


@pytest.mark.parametrize(
    ("mpi", "reason"),
    [
        ("none", "started 2 ranks (SLURM_STEP_NUM_TASKS), but MPI sees only this one"),
        ("pmi2", "started 2 ranks (PMI_SIZE), but MPI sees only this one"),
    ],
)
def test_the_wrong_plugin_is_refused(
    mpi: str, reason: str, slurm: Cluster, rows: Path, tmp_path: Path
) -> None:
    ended = srun(slurm, mpi, "run", MLP, rows, tmp_path / "out.npy")
    assert ended.status == 1, ended.output
    assert reason in ended.output
    assert "srun --mpi=pmix" in ended.output
    assert not list(tmp_path.glob("out*"))


def test_a_rank_that_fails_ends_the_job(slurm: Cluster, rows: Path, tmp_path: Path) -> None:
    arguments = ("run", FAILING, rows, tmp_path / "out.npy", "--micro-batch=1")
    ended = srun(slurm, "pmix", *arguments)
    assert ended.status not in (0, 75), ended.output
    assert "### pipepar: rank 1 of 2" in ended.output
    assert "ValueError: sprung" in ended.output


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_fails_as_its_program_does(script: str, slurm: Cluster) -> None:
    job = slurm.sbatch(*TWO, script, "model", env={"PIPEPAR": "false"})
    found = slurm.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "0"), slurm.output(job)


def test_the_doctor_knows_the_hosts(slurm: Cluster) -> None:
    ended = srun(slurm, "pmix", "doctor", "--json")
    found, _ = json.JSONDecoder().raw_decode(ended.output[ended.output.index("{") :])
    assert [facts["host"] for facts in found["ranks"]] == list(slurm.hosts.names)
    assert [(link["first"], link["second"]) for link in found["links"]] == [(0, 1)]


def test_a_job_that_was_cancelled_stays_so(slurm: Cluster) -> None:
    job = slurm.sbatch(*TWO, SCRIPTS[0], "model", env=PATIENT)
    until_all_work(slurm, job, 2)
    assert slurm.run("scancel", "--full", job).status == 0
    for _ in range(100):  # it is called cancelled before its script has ended
        if not slurm.run("squeue", "--noheader", f"--jobs={job}").output.strip():
            break
        time.sleep(0.1)
    found = slurm.show(job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), slurm.output(job)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_job_whose_time_is_up_goes_on_later(
    script: str, slurm: Cluster, limited: dict[str, str]
) -> None:
    found = slurm.wait(limited[script])
    said = slurm.output(limited[script])
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), said
    assert said.count("given: [run] [model] [a file]\n") == 4
    assert said.count("given: [run] [model] [a file] [--resume]\n") == 4


def test_a_job_goes_on_after_a_lost_node(slurm: Cluster) -> None:
    job = slurm.sbatch(*TWO, SCRIPTS[0], "model", env=PATIENT)
    until_all_work(slurm, job, 2)
    lost = ("scontrol", "update", f"NodeName={slurm.hosts.names[1]}", "State=DOWN", "Reason=test")
    assert slurm.run(*lost).status == 0  # and it comes back by itself, since it answers
    found = slurm.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)
    assert slurm.output(job).count("given: [run] [model] [--resume]\n") == 2


def until_all_work(slurm: Cluster, job: str, ranks: int = 4) -> None:
    slurm.wait(job, "RUNNING")
    for _ in range(100):
        if slurm.output(job).count("given:") == ranks:
            return
        time.sleep(0.1)
    raise AssertionError(slurm.output(job))
