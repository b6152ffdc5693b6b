"""Stages run on the ranks of the plan, and the results equal those of one process."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipepar.errors import PipeparError
from pipepar.jobs.run import Job, run_job
from pipepar.model.capture.capture import capture
from pipepar.model.source.open_source import open_source
from pipepar.planner.plan_offline import make_plan
from pipepar.report.run_record import RunRecord
from tests.helpers.cluster.mpirun import run_ranks
from tests.helpers.jobs.command import MLP
from tests.helpers.jobs.in_process import errors_in_file, run
from tests.helpers.jobs.threads import in_threads

PICKY = "tests.helpers.factories:picky_last"
ORDERS = [
    (2, (1, 0)),
    (3, (2, 0, 1)),
    (3, (1, 2, 0)),
    (3, (2, 1)),  # the source runs no stage
    (3, (1, 0)),  # the sink runs no stage
    (3, (1,)),  # neither runs a stage
    (4, (3, 1)),
]


def planned(folder: Path, model: str, order: tuple[int, ...], rows: int) -> Path:
    """Write a plan with one stage on each rank of `order`, in order."""
    module = open_source(model, values=False).module
    graph = capture(module, (torch.zeros(rows, 4),), {})
    plan = replace(make_plan(graph, len(order)), ranks=order, micro_batch=rows, depth=1)
    path = folder / "plan.json"
    path.write_text(plan.to_json())
    return path


def records(ranks: int, job: Job) -> list[RunRecord]:
    return in_threads(ranks, partial(run_job, job=job))


@pytest.mark.parametrize(("ranks", "order"), ORDERS)
def test_any_order_of_ranks(rows: Path, tmp_path: Path, ranks: int, order: tuple[int, ...]) -> None:
    plan = planned(tmp_path, MLP, order, 2)
    job = Job(MLP, rows, tmp_path / "one.npy", micro_batch=2)
    run(job)
    found = records(ranks, replace(job, output=tmp_path / "many.npy", plan=plan))
    assert (tmp_path / "many.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    for record in found:
        assert record == found[0]
        assert tuple(stage.rank for stage in record.stages) == order
        counts = [
            [stage.totals[kind].count for stage in record.stages]
            for kind in ("source", "compute", "sink")
        ]
        between = [0] * (len(order) - 1)
        assert counts == [[6, *between], [6] * len(order), [*between, 6]]


@pytest.mark.parametrize(("ranks", "order"), ORDERS)
def test_labels_errors_and_a_second_stream(
    tmp_path: Path, ranks: int, order: tuple[int, ...]
) -> None:
    """Columns, samples and errors are sent along the channels of any placement."""
    values = np.ones((7, 4), np.float32)
    values[3] = 1e6  # the stage of the third layer refuses its activations
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "labels.npy", np.zeros(7, np.int64))
    job = Job(
        PICKY,
        tmp_path / "x.npy",
        tmp_path / "one.npy",
        micro_batch=2,
        labels=tmp_path / "labels.npy",
        on_error="skip",
    )
    alone = run(job)
    plan = planned(tmp_path, PICKY, order, 2)
    many = replace(job, output=tmp_path / "many.npy", plan=plan)
    (record, *_) = records(ranks, many)
    assert (record.failed, record.confusion) == (alone.failed, alone.confusion)
    assert errors_in_file(many).keys() == errors_in_file(job).keys() == {3}
    assert (tmp_path / "many.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()


def test_a_stopped_job_is_resumed_with_another_placement(rows: Path, tmp_path: Path) -> None:
    job = Job(MLP, rows, tmp_path / "one.npy", micro_batch=2)
    run(job)
    many = replace(job, output=tmp_path / "many.npy")
    assert run(many, 3).stopped is not None
    plan = planned(tmp_path, MLP, (2, 0, 1), 2)
    (record, *_) = records(3, replace(many, resume=True, plan=plan))
    assert record.samples == 5
    assert (tmp_path / "many.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()


def test_a_plan_with_more_ranks_than_the_job_is_refused(rows: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, MLP, (2, 0), 2)
    job = Job(MLP, rows, tmp_path / "y.npy", plan=plan)
    with pytest.raises(
        PipeparError, match=r"a stage on rank 2, .* 0 to 1; start the job with mpirun -n 3"
    ):
        records(2, job)


def test_under_mpirun(rows: Path, tmp_path: Path) -> None:
    """MPI channels, and a thread for each role in addition to the stage."""
    plan = planned(tmp_path, MLP, (2, 0), 2)
    run(Job(MLP, rows, tmp_path / "one.npy", micro_batch=2))
    words = ["-m", "pipepar", "run", MLP, rows, tmp_path / "many.npy", "--plan", plan]
    ended = run_ranks(3, [*map(str, words)], 100)
    assert ended.status == 0, ended.output
    assert (tmp_path / "many.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    assert json.loads(plan.read_text())["ranks"] == [2, 0]
