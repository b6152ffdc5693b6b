"""Ranks of several kinds take the stages in the order with the faster prediction."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.model.capture.capture import capture
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Neighbours
from pipepar.planner import plan_job
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.profile import Profile
from tests.helpers.jobs.threads import in_threads
from tests.helpers.run_contexts import run_on_hosts

LAYERS = 8
MODEL = nn.Sequential(*(nn.Linear(4, 4) for _ in range(LAYERS))).eval()


def ranks_of(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], request: PlanRequest
) -> list[tuple[int, ...] | None]:
    """Return the ranks of a plan; devices of kind "odd" are slow except for the last layers."""
    graph = capture(MODEL, (torch.zeros(2, 4),), {})
    count = len(graph.nodes)
    even = tuple([1e-3] * count)
    odd = tuple([4e-3] * (count - 2) + [0.5e-3] * 2)
    devices = tuple(DeviceCost(1.0, kind=kind) for kind in kinds)
    hardware = Neighbours(devices, (LinkCost(),) * (len(kinds) - 1))
    profile = Profile(hardware, {2: {"even": even, "odd": odd}})
    monkeypatch.setattr(plan_job, "measure_profile", lambda *given: profile)

    def work(world: World) -> tuple[int, ...] | None:
        agreed = plan_job.agree_on_plan(run_on_hosts(world), graph, request)
        return agreed.plan.ranks

    return in_threads(len(kinds), work)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("odd", "even", "even"), (1, 2, 0)),
        (("even", "odd", "even"), (0, 2, 1)),
        (("even", "even", "odd"), None),
        (("even", "even", "even"), None),
    ],
)
def test_the_faster_order_is_chosen(
    monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], expected: tuple[int, ...] | None
) -> None:
    request = PlanRequest(samples=200, micro_batch=2, reorder=True)
    assert ranks_of(monkeypatch, kinds, request) == [expected] * 3


def test_a_script_keeps_the_order_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank of a script is both the source and the sink."""
    request = PlanRequest.for_calls(200, 2, None)
    assert ranks_of(monkeypatch, ("odd", "even", "even"), request) == [None] * 3
