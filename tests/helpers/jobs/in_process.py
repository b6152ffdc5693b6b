"""Runs jobs in this process, and reads their hidden files, failed samples and results."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipepar.comm.world import World
from pipepar.jobs.output.quarantine import errors_of
from pipepar.jobs.run import Job, run_job
from pipepar.report.run_record import RunRecord
from tests.helpers.jobs.command import after


def run(job: Job, micro_batches: int = 10_000) -> RunRecord:
    return run_job(World.start(), job, stop_requested=after(micro_batches))


def resume(job: Job) -> RunRecord:
    """Resume a job; its journal gives the micro-batch."""
    return run(replace(job, resume=True, micro_batch=None))


def hidden_files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


def errors_in_file(job: Job) -> dict[int, tuple[int | str, str]]:
    """Return stage and error of each sample in the file of errors; {} without the file."""
    path = errors_of(job.output)
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    assert all(list(each) == ["id", "stage", "error"] for each in found)
    assert sorted({each["id"] for each in found}) == [each["id"] for each in found]
    return {each["id"]: (each["stage"], each["error"]) for each in found}


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def assert_same(found: Any, wanted: torch.Tensor) -> None:
    assert np.array_equal(found, wanted.numpy(), equal_nan=True)
