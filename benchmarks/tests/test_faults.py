"""The faults benchmark finds the leftovers of a job, reads its output, and completes a trial."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.catalog.faults.job import running
from benchmarks.catalog.faults.model import LENGTH, encode, write_input
from tests.helpers.cluster.mpirun import environment
from tests.helpers.cluster.waiting import until

ROOT = Path(__file__).parents[2]

# In a separate process, since it becomes the parent of orphans.
ORPHAN = """
import os, signal, sys
from pathlib import Path
from benchmarks.catalog.faults.job import adopt_orphans, descendants, running
from tests.helpers.cluster.waiting import until

adopt_orphans()
with running(["sh", "-c", "(sleep 60 &); exec sleep 61"], Path(sys.argv[1]), {}) as job:
    assert until(lambda: len(descendants()) == 2, 20)
    assert not job.finish(0.1)
    os.kill(job.launcher, signal.SIGKILL)
    assert not job.finish(0.5)
    assert job.status == -signal.SIGKILL
    assert "(sleep 60 )" in job.left(), job.left()
    assert "sleep 61" not in job.left(), job.left()
assert not descendants()
"""


def test_an_orphan_is_found_and_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(), timeout=60)


def test_the_output_of_a_job_is_parsed(tmp_path: Path) -> None:
    output = (
        "### pipepar: rank 2 of 3 on here failed\n"
        "prterun noticed that process rank 0 with PID 7 on\nnode here exited on signal 9\n"
        "prterun has exited due to process rank 1 with PID 0 on node here calling abort\n"
        "note: resuming: 1,204 of 2,000 samples are done already\n"
    )
    with running(["printf", "%s", output], tmp_path, {}) as job:
        assert until(lambda: job.status is not None, 20)
        assert job.status == 0
        assert job.named == [2, 0]
        assert job.blocks == 1
        assert job.kept == 1204


def test_inputs_of_both_formats_have_the_same_samples(tmp_path: Path) -> None:
    write_input(tmp_path / "in.npy", 5)
    write_input(tmp_path / "in.txt", 5)
    rows = np.load(tmp_path / "in.npy")
    assert rows.shape == (5, LENGTH)
    assert np.array_equal(rows, encode((tmp_path / "in.txt").read_text().splitlines()).numpy())


@pytest.mark.full
def test_a_trial() -> None:
    """A rank is killed and the job is resumed; tests/jobs tests the same of pipepar itself."""
    command = [sys.executable, *"-m benchmarks faults --trials 1 --samples 300".split()]
    command += ["--only", "killed-rank"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"--only killed-rank --seed 0 --trials 1: ok, .* (\d+)% kept", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 0
    assert re.search(r"killed-rank +1 +0 +0 ", done.stdout), done.stdout
