"""Very large inputs: the memory of a job does not grow with the number of samples."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pipepar.jobs.run import Job
from tests.helpers.jobs.in_process import run

COUNT = 2**34
# One byte per sample would be 16 GiB.
MOST = 64 << 20


@pytest.fixture
def peak() -> Iterator[None]:
    tracemalloc.start()
    yield
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < MOST


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("suffix", [".npy", ".jsonl"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_memory_is_independent_of_the_number_of_samples(
    tmp_path: Path, suffix: str, on_error: Literal["stop", "skip"]
) -> None:
    path = tmp_path / "in.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(COUNT, 1))  # sparse
    job = Job(
        *("tests.helpers.functions:identity", path, tmp_path / f"out{suffix}"),
        micro_batch=4,
        on_error=on_error,
    )
    stopped = run(job, 3).stopped
    assert stopped is not None
    assert (stopped.done, stopped.count) == (12, COUNT)
    stopped = run(replace(job, resume=True), 5).stopped
    assert stopped is not None
    assert (stopped.done, stopped.count) == (32, COUNT)
