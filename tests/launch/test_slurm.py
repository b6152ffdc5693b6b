"""The batch scripts and srun in a real Slurm cluster of two hosts."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipepar.data.writers.journal import read_journal
from tests.helpers.cluster.mpirun import Finished
from tests.helpers.cluster.slurm import Cluster, cluster, obstacle
from tests.helpers.jobs.command import pipepar

pytestmark = [pytest.mark.slurm, pytest.mark.long(120)]

MLP, WIDE, FAILING, HOURS = (
    f"tests.helpers.factories:{name}" for name in ("mlp", "wide", "raises_last", "hours")
)
SCRIPTS = ["launch/slurm.sbatch", "launch/slurm-mpirun.sbatch"]
FOUR, TWO = (("--nodes=2", f"--ntasks-per-node={count}", "--time=5") for count in (2, 1))
PATIENT = {"PIPEPAR": "tests/helpers/cluster/patient.sh"}
SAMPLES = 999
STOPPED, RESUMING = "stopped by SIGUSR1 after", "resuming:"


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


@dataclass(frozen=True)
class Long:
    """A job that can finish only in its third start."""

    slurm: Cluster
    number: str
    output: Path
    seen: Path
    """The file with all samples that its model has computed, in all its starts."""

    def counts(self, before: str) -> list[int]:
        """Return the numbers of samples that the job has printed after the text `before`."""
        text = " ".join(self.slurm.output(self.number).split())
        return [int(found) for found in re.findall(rf"{before} (\d+) of {SAMPLES} samples", text)]

    def approach_time_limit(self, start: int) -> None:
        """Wait until a start has added results on disk, then move the time limit close to now."""
        end = time.monotonic() + 100
        while not self.has_added(start):
            assert time.monotonic() < end, self.slurm.output(self.number)
            time.sleep(0.1)
        approach_time_limit(self.slurm, self.number)

    def has_added(self, start: int) -> bool:
        earlier = self.counts(STOPPED)
        done = sum(len(record.samples) for record in read_journal(self.output)[1])
        return len(earlier) == start - 1 and done > max(earlier, default=0)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an input of numbered rows; values of 4 or more differ from those of measurements."""
    path = tmp_path_factory.mktemp("numbered") / "a file.npy"
    np.save(path, np.arange(4, 4 + 4 * SAMPLES, dtype=np.float32).reshape(SAMPLES, 4))
    return path


# Slurm checks time limits every 30 seconds. So tests that do not need these jobs request the
# fixtures that start them, and run while Slurm waits.
@pytest.fixture(scope="module")
def limited(slurm: Cluster) -> str:
    """Return a job of slurm-mpirun.sbatch that is close to its time limit."""
    job = slurm.sbatch(*FOUR, SCRIPTS[1], "model", "a file", env=PATIENT)
    wait_for_all_ranks(slurm, job)
    approach_time_limit(slurm, job)
    return job


@pytest.fixture(scope="module")
def long(slurm: Cluster, numbered: Path, tmp_path_factory: pytest.TempPathFactory) -> Long:
    """Return a job that has just been submitted."""
    folder = tmp_path_factory.mktemp("long")
    output, seen = folder / "out.npy", folder / "seen"
    words = (*TWO, SCRIPTS[0], HOURS, numbered, output, "--micro-batch=1")
    job = slurm.sbatch(*words, env={"PIPEPAR_TEST_SEEN": str(seen)})
    return Long(slurm, job, output, seen)


@pytest.fixture(scope="module")
def limited_once(long: Long) -> Long:
    """Return the job when its first start is close to the time limit."""
    long.approach_time_limit(1)
    return long


@pytest.fixture(scope="module")
def limited_twice(limited_once: Long) -> Long:
    """Return the job when its second start is close to the time limit."""
    limited_once.approach_time_limit(2)
    return limited_once


def srun(slurm: Cluster, mpi: str, *arguments: object) -> Finished:
    return slurm.run("srun", *TWO, f"--mpi={mpi}", "pipepar", *arguments)


@pytest.mark.usefixtures("limited", "long")
@pytest.mark.parametrize(
    ("mpi", "reason"),
    [
        ("none", "started 2 ranks (SLURM_STEP_NUM_TASKS), but MPI sees only this one"),
        ("pmi2", "started 2 ranks (PMI_SIZE), but MPI sees only this one"),
    ],
)
def test_a_wrong_mpi_plugin_is_refused(
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
def test_a_job_fails_if_its_program_fails(script: str, slurm: Cluster) -> None:
    job = slurm.sbatch(*TWO, script, "model", env={"PIPEPAR": "false"})
    found = slurm.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("FAILED", "0"), slurm.output(job)


@pytest.mark.usefixtures("limited_once")
def test_the_doctor_lists_the_hosts(slurm: Cluster) -> None:
    ended = srun(slurm, "pmix", "doctor", "--json")
    found, _ = json.JSONDecoder().raw_decode(ended.output[ended.output.index("{") :])
    assert [facts["host"] for facts in found["ranks"]] == list(slurm.hosts.names)
    assert [(link["first"], link["second"]) for link in found["links"]] == [(0, 1)]


def test_a_cancelled_job_is_not_requeued(slurm: Cluster) -> None:
    job = slurm.sbatch(*TWO, SCRIPTS[0], "model", env=PATIENT)
    wait_for_all_ranks(slurm, job, 2)
    assert slurm.run("scancel", "--full", job).status == 0
    for _ in range(100):  # Slurm reports CANCELLED before the script has ended
        if not slurm.run("squeue", "--noheader", f"--jobs={job}").output.strip():
            break
        time.sleep(0.1)
    found = slurm.show(job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0"), slurm.output(job)


@pytest.mark.usefixtures("limited_twice")
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_output_equals_that_of_one_process(
    script: str, slurm: Cluster, samples: Path, tmp_path: Path
) -> None:
    one, many = tmp_path / "one.npy", tmp_path / "many.npy"
    status, output = pipepar("run", WIDE, samples, one, "--micro-batch", 16)
    assert status == 0, output
    job = slurm.sbatch(*FOUR, script, WIDE, samples, many, "--micro-batch=16")
    found = slurm.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "0"), slurm.output(job)
    assert "4 ranks, 2 hosts" in slurm.output(job)
    assert np.array_equal(np.load(one), np.load(many))


def test_a_job_at_its_time_limit_is_requeued(slurm: Cluster, limited: str) -> None:
    found = slurm.wait(limited)
    text = slurm.output(limited)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), text
    assert text.count("given: [run] [model] [a file]\n") == 4
    assert text.count("given: [run] [model] [a file] [--resume]\n") == 4


def test_a_job_that_is_requeued_twice_ends_at_its_third_start(
    slurm: Cluster, numbered: Path, limited_twice: Long, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.npy"
    status, output = pipepar("run", HOURS, numbered, whole, "--micro-batch", 1)
    assert status == 0, output
    job = limited_twice
    found = slurm.wait(job.number)
    text = slurm.output(job.number)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "2"), text
    assert job.output.read_bytes() == whole.read_bytes()
    first, second = job.counts(STOPPED)
    assert 0 < first < second < SAMPLES
    assert job.counts(RESUMING) == [first, second]
    assert f"{SAMPLES - second} samples in " in text
    seen = np.fromfile(job.seen, np.float32).reshape(-1, 4)
    assert np.array_equal(seen[seen[:, 0] >= 1], np.load(numbered))  # each of them once
    assert set(os.listdir(job.output.parent)) == {"out.npy", "seen"}


def test_a_job_is_requeued_after_the_loss_of_a_node(slurm: Cluster) -> None:
    job = slurm.sbatch(*TWO, SCRIPTS[0], "model", env=PATIENT)
    wait_for_all_ranks(slurm, job, 2)
    lost = ("scontrol", "update", f"NodeName={slurm.hosts.names[1]}", "State=DOWN", "Reason=test")
    assert slurm.run(*lost).status == 0  # the node returns by itself, since it responds
    found = slurm.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)
    assert slurm.output(job).count("given: [run] [model] [--resume]\n") == 2


def wait_for_all_ranks(slurm: Cluster, job: str, ranks: int = 4) -> None:
    slurm.wait(job, "RUNNING")
    for _ in range(100):
        if slurm.output(job).count("given:") == ranks:
            return
        time.sleep(0.1)
    raise AssertionError(slurm.output(job))


def approach_time_limit(slurm: Cluster, job: str) -> None:
    near = ("scontrol", "update", f"JobId={job}", "EndTime=now+145seconds")
    assert slurm.run(*near).status == 0
