"""The options of a plan: the user's come first, then those of a given plan, then the defaults."""

from dataclasses import replace

import pytest
import torch

from pipepar.model.capture.capture import capture
from pipepar.planner.plan_offline import make_plan
from pipepar.planner.plan_request import CALL_MICRO_BATCH, DEPTH, MICRO_BATCH, PlanRequest
from tests.helpers.models import six_layers

PLAN = make_plan(capture(six_layers(), (torch.randn(4, 8),), {}), 2)


@pytest.mark.parametrize(
    ("requested", "planned", "fixed", "expected"),
    [
        ((None, None), (None, None), None, (MICRO_BATCH, DEPTH)),
        ((None, None), (None, None), 6, (6, DEPTH)),
        ((None, None), (3, 5), 6, (3, 5)),
        ((7, None), (3, 5), 6, (7, 5)),
        ((None, 1), (3, 5), None, (3, 1)),
    ],
)
def test_a_plan_is_completed_by_options_and_defaults(
    requested: tuple[int | None, int | None],
    planned: tuple[int | None, int | None],
    fixed: int | None,
    expected: tuple[int, int],
) -> None:
    plan = replace(PLAN, micro_batch=planned[0], depth=planned[1])
    completed = PlanRequest(None, *requested).completed(plan, fixed)
    assert (completed.micro_batch, completed.depth) == expected
    assert completed.stages == plan.stages


def test_the_number_of_rows_to_capture_a_model_with() -> None:
    given = replace(PLAN, micro_batch=3)
    assert PlanRequest().example_rows == MICRO_BATCH
    assert PlanRequest(given=PLAN).example_rows == MICRO_BATCH
    assert PlanRequest(given=given).example_rows == 3
    assert PlanRequest(micro_batch=5, given=given).example_rows == 5


@pytest.mark.parametrize(
    ("samples", "micro_batch", "expected"),
    [(None, None, MICRO_BATCH), (0, None, MICRO_BATCH), (5, None, 5), (500, 64, 64), (5, 64, 64)],
)
def test_the_size_to_count_work_for(
    samples: int | None, micro_batch: int | None, expected: int
) -> None:
    assert PlanRequest(samples, micro_batch).counted_size == expected


@pytest.mark.parametrize(
    ("rows", "micro_batch", "samples", "size", "captured"),
    [
        (0, None, None, CALL_MICRO_BATCH, CALL_MICRO_BATCH),
        (1, None, None, CALL_MICRO_BATCH, CALL_MICRO_BATCH),
        (1, 5, None, 5, 5),
        (40, None, 40, None, CALL_MICRO_BATCH),
        (40, 5, 40, 5, 5),
        (3, 5, None, 5, 5),
    ],
)
def test_the_options_of_calls_follow_their_example(
    rows: int,
    micro_batch: int | None,
    samples: int | None,
    size: int | None,
    captured: int,
) -> None:
    request = PlanRequest.for_calls(rows, micro_batch, 4)
    assert (request.samples, request.micro_batch, request.depth) == (samples, size, 4)
    assert request.example_rows == captured
