"""The plan that ranks agree on, measured or given, and pipelines with that plan."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.engine.assembly import assemble, capture_together
from pipepar.engine.shared_source import SharedSource
from pipepar.errors import PipeparError
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import from_module
from pipepar.pipeline import Pipeline
from pipepar.plan.placement import Ends
from pipepar.plan.plan import Plan
from pipepar.planner import profile as profiling
from pipepar.planner.plan_job import agree_on_plan
from pipepar.planner.plan_offline import make_plan
from pipepar.planner.plan_request import DEPTH, MICRO_BATCH, PlanRequest
from pipepar.planner.static_shapes import fixed_batch
from tests.helpers.models import six_layers as model
from tests.helpers.rank_fixtures import all_equal, on_ranks
from tests.helpers.run_contexts import run_on_hosts
from tests.helpers.zoo import ByRow

pytestmark = [pytest.mark.mpi, on_ranks(1, 2, 4)]


def micro_batches(size: int, total: int) -> Iterator[slice]:
    return (slice(begin, begin + size) for begin in range(0, total, size))


def assert_equals_the_unsplit(pipe: Pipeline, whole: nn.Module, x: torch.Tensor) -> None:
    found = pipe(x)
    if pipe.rank == 0:
        with torch.no_grad():
            parts = [whole(x[part]) for part in micro_batches(pipe.micro_batch, len(x))]
        assert torch.equal(found, torch.cat(parts))
    else:
        assert found is None


def test_a_measured_pipeline_gives_the_same_numbers(world: World) -> None:
    x, given = torch.randn(40, 8), model()
    with Pipeline(given, example_args=(x,)) as pipe:
        assert pipe.micro_batch in PlanRequest(40).sizes(None)
        assert all_equal(world, pipe.micro_batch)
        assert all_equal(world, pipe._assembly.plan.digest)
        assert_equals_the_unsplit(pipe, model(), x)
        assert_equals_the_unsplit(pipe, model(), torch.randn(3, 8))
    before, after = model().state_dict(), given.state_dict()
    assert list(after) == list(before), "measuring does not change the model"
    assert all(torch.equal(after[name], before[name]) for name in before)


@on_ranks(1, 2)  # each rank traces the model, which takes long
def test_a_model_with_a_fixed_batch_size_gets_that_micro_batch(world: World) -> None:
    torch.manual_seed(6)
    whole, x = ByRow().eval(), torch.randn(6, 8)
    warned = (
        pytest.warns(UserWarning, match=r"x must be \[6, ") if world.rank == 0 else nullcontext()
    )
    with warned, Pipeline(whole, example_args=(x,)) as pipe:
        assert pipe.micro_batch == fixed_batch(pipe._assembly.graph) == 6
        assert_equals_the_unsplit(pipe, whole, x)


def test_the_assembly_has_the_plan_of_rank_0(world: World) -> None:
    shared, run = SharedSource(from_module(model()), from_root=False), run_on_hosts(world)
    request = PlanRequest(samples=100)
    graph = capture_together(run, shared, (torch.randn(4, 8),), {})
    assembly = assemble(
        run, shared, graph, agree_on_plan(run, graph, request), Ends.of_files(world.size)
    )
    assembly.wiring.close()
    agreed = assembly.agreed
    assert all_equal(world, agreed.plan.to_json())
    assert len(agreed.plan.stages) == world.size
    assert (agreed.plan.micro_batch, agreed.plan.depth) == (agreed.micro_batch, agreed.depth)
    assert agreed.micro_batch in request.sizes(None)
    assert (agreed.choice is not None) == (world.rank == 0)


@pytest.mark.parametrize(
    ("planned", "wanted", "expected"),
    [
        ((3, 5), PlanRequest(), (3, 5)),
        ((3, None), PlanRequest(), (3, DEPTH)),
        ((None, None), PlanRequest(), (MICRO_BATCH, DEPTH)),
        ((3, 5), PlanRequest(micro_batch=7), (7, 5)),
        ((3, 5), PlanRequest(depth=1), (3, 1)),
    ],
)
def test_a_given_plan_is_used(
    world: World,
    graph: Graph,
    planned: tuple[int | None, int | None],
    wanted: PlanRequest,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(*given: Any, **named: Any) -> None:
        raise AssertionError("a given plan needs no measurements")

    monkeypatch.setattr(profiling, "measure_links", measure)
    content = json.loads(make_plan(graph, world.size).to_json())
    content |= {"micro_batch": planned[0], "depth": planned[1]}
    given = Plan.from_json(json.dumps(content))
    # Only rank 0 has read it.
    wanted = replace(wanted, given=given if world.rank == 0 else None)
    agreed = agree_on_plan(run_on_hosts(world, print), graph, wanted)
    assert (agreed.micro_batch, agreed.depth) == expected
    assert agreed.plan.stages == given.stages
    assert agreed.choice is None


def test_a_plan_for_another_number_of_ranks_is_refused_on_all(world: World, graph: Graph) -> None:
    given = make_plan(graph, world.size + 1)
    request = PlanRequest(given=given if world.rank == 0 else None)
    with pytest.raises(PipeparError, match=f"the job has {world.size}"):
        agree_on_plan(run_on_hosts(world, print), graph, request)


class Total(nn.Module):
    """One output for all rows together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0)


def test_a_model_that_joins_rows_gets_a_whole_batch(world: World) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    layers = [*(nn.Linear(4, 4) for _ in range(world.size)), Total()]
    whole = nn.Sequential(*layers).eval()
    for parameter in whole.parameters():
        nn.init.constant_(parameter, 0.5)
    with Pipeline(whole, example_args=(x,)) as pipe, torch.no_grad():
        assert pipe.micro_batch == 8
        result = pipe(x)
        assert world.rank or torch.equal(result, whole(x))


def test_example_inputs_of_different_sizes_on_different_ranks(world: World) -> None:
    with Pipeline(model(), example_args=(torch.zeros(256 if world.rank == 0 else 8, 8),)) as pipe:
        assert all_equal(world, pipe.micro_batch)


def test_an_example_input_without_rows(world: World) -> None:
    with Pipeline(model(), example_args=(torch.zeros(0, 8),)) as pipe:
        result = pipe(torch.ones(5, 8))
        assert world.rank or len(result) == 5
