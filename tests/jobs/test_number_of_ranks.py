"""The output of a job is the same on any number of ranks, in threads and in processes."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipepar.jobs.run import Job, run_job
from tests.helpers.cluster.mpirun import run_ranks
from tests.helpers.jobs.command import MLP
from tests.helpers.jobs.threads import in_threads
from tests.helpers.jobs.traps import with_plan

pytestmark = [pytest.mark.filterwarnings("ignore:.*they will slow each other"), pytest.mark.long(8)]


def run_processes(ranks: int, rows: Path, folder: Path) -> str:
    """Run the model under mpirun; write out.npy to the folder, and return what the job prints."""
    command = ["-m", "pipepar", "run", MLP, str(rows), str(folder / "out.npy")]
    ended = run_ranks(ranks, [*command, *with_plan("mlp", ranks, folder)], seconds=120)
    assert ended.status == 0, ended.output
    return ended.output


def test_an_empty_input_of_several_ranks(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((0, 4), np.float32))
    job = Job(MLP, tmp_path / "rows.npy", tmp_path / "out.npy")
    found = in_threads(2, partial(run_job, job=job))
    assert [each.samples for each in found] == [0, 0]
    assert len(np.load(tmp_path / "out.npy")) == 0


@pytest.mark.full
def test_an_empty_input_of_several_processes(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((0, 4), np.float32))
    run_processes(2, tmp_path / "rows.npy", tmp_path)
    assert len(np.load(tmp_path / "out.npy")) == 0


def test_the_output_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    given = tmp_path / "rows.npy"
    np.save(given, np.random.default_rng(1).random((41, 4), np.float32))
    results = []
    for ranks in (1, 2, 3):
        job = Job(MLP, given, tmp_path / f"{ranks}.npy", micro_batch=2)
        found = in_threads(ranks, partial(run_job, job=job))
        assert [each.samples for each in found] == [41] * ranks
        results.append(job.output.read_bytes())
    assert "41 samples in" in run_processes(3, given, tmp_path)
    results.append((tmp_path / "out.npy").read_bytes())
    assert results[0] == results[1] == results[2] == results[3]
