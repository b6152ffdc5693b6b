"""The stages of a model compute the same numbers as the unsplit model, bit for bit."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.errors import CaptureError, PlanError, WeightsError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source, from_module
from pipepar.model.weights.weight_source import ModuleWeights
from pipepar.planner.plan_offline import make_plan
from tests.helpers.models import Dicts, InPlace, Mlp, Sized, Skips, Tied, run, stages_of

torch.set_num_threads(1)


def sequential() -> Any:
    return nn.Sequential(
        nn.Linear(16, 16),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Linear(16, 16), nn.Tanh()),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    )


def images(batch: int, size: int) -> Any:
    return (torch.randn(batch, 3, 16, 16),), {}


def dicts(batch: int, size: int) -> Any:
    x = {"x": torch.randn(batch, 8), "offset": torch.randn(batch)}
    return (x, None), {"scale": 0.5, "flag": True}


# name: module, call of (batch, length)
Call = tuple[tuple[Any, ...], dict[str, Any]]
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Call]]] = {
    "sequential": (sequential, lambda b, s: ((torch.randn(b, s, 16),), {})),
    "mlp": (Mlp, lambda b, s: ((torch.randn(b, 16),), {})),
    "mlp, three dimensions": (Mlp, lambda b, s: ((torch.randn(b, s, 16),), {})),
    "skips": (Skips, images),
    "in place": (InPlace, lambda b, s: ((torch.randn(b, 4, 8, 8),), {})),
    "dicts": (Dicts, dicts),
    "tied": (Tied, lambda b, s: ((torch.randint(0, 40, (b, s)),), {})),
    "sizes": (Sized, lambda b, s: ((torch.randn(b, s, 8),), {})),
}


def copied(call: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.clone, call)


def assert_equal(found: Any, expected: Any) -> None:
    found_leaves, found_structure = pytree.tree_flatten(found)
    leaves, structure = pytree.tree_flatten(expected)
    assert found_structure == structure
    for mine, theirs in zip(found_leaves, leaves, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert torch.equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        else:
            assert mine == theirs


@cache
def captured(name: str) -> tuple[Source, Graph, list[tuple[Call, Any]]]:
    """Return a model, its graph, and calls with the unsplit model's results."""
    make, call = CASES[name]
    torch.manual_seed(0)
    module = make().eval()
    source = from_module(module)
    args, kwargs = call(1, 5)
    graph = capture(source.module, args, kwargs)
    calls = [call(batch, length) for batch, length in [(1, 5), (2, 5), (3, 7), (5, 3)]]
    with torch.no_grad():
        expected = [module(*copied(args), **copied(kwargs)) for args, kwargs in calls]
    return source, graph, list(zip(calls, expected, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_stages_equal_the_unsplit_model(name: str, count: int) -> None:
    source, graph, calls = captured(name)
    plan = make_plan(graph, count)
    stages = [Stage.load(graph, plan, index, source.weights) for index in range(count)]
    for (args, kwargs), expected in calls:
        assert_equal(run(graph, plan, stages, args, kwargs), expected)


@pytest.mark.parametrize("name", ["sequential", "in place"])
def test_the_callers_tensors_are_not_modified(name: str) -> None:
    make, call = CASES[name]
    (x,), _ = call(2, 3)
    graph, plan, stages = stages_of(make().eval(), (x,), {}, 2)
    before = x.clone()
    run(graph, plan, stages, (x,))
    assert torch.equal(x, before)


def test_an_input_is_not_modified_by_an_in_place_first_child() -> None:
    module = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 2))
    x = torch.randn(3, 2, 3)
    graph, plan, stages = stages_of(module.eval(), (x,), {}, 2)
    before = x.clone()
    with torch.no_grad():
        expected = module(x.clone())
    assert torch.equal(run(graph, plan, stages, (x,)), expected)
    assert torch.equal(x, before)


def test_a_tensor_that_is_returned_twice_is_one_object() -> None:
    args, kwargs = dicts(2, 0)
    graph, plan, stages = stages_of(Dicts().eval(), args, kwargs, 2)
    args, kwargs = dicts(3, 0)
    output = run(graph, plan, stages, args, kwargs)
    assert output["again"] is output["y"]


def test_results_are_ordinary_tensors() -> None:
    graph, plan, stages = stages_of(Mlp().eval(), (torch.randn(2, 16),), {}, 2)
    y = run(graph, plan, stages, (torch.randn(2, 16),))
    assert not y.is_inference()
    assert not y.requires_grad


def test_a_stage_holds_its_own_weights_only() -> None:
    module = Mlp().eval()
    _, plan, stages = stages_of(module, (torch.randn(2, 16),), {}, 3)
    total = sum(p.numel() * p.element_size() for p in module.parameters())
    assert sum(stage.weight_bytes for stage in stages) == total
    for stage, planned in zip(stages, plan.stages, strict=True):
        held = list(stage._module.parameters())
        assert sum(p.numel() * p.element_size() for p in held) == planned.weight_bytes > 0


def test_a_sequential_with_a_recurrent_layer() -> None:
    class Last(nn.Module):
        def forward(self, pair: Any) -> Any:
            return pair[0]

    module = nn.Sequential(nn.LSTM(4, 4), Last(), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    x = torch.randn(3, 2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 3)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def test_channels_last_is_preserved() -> None:
    module = Skips().eval()
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    graph, plan, stages = stages_of(module, (x,), {}, 3)
    y = run(graph, plan, stages, (x,))
    with torch.no_grad():
        expected = module(x)
    assert torch.equal(y, expected)
    assert y.stride() == expected.stride()


def test_bfloat16() -> None:
    module = Mlp().eval().bfloat16()
    x = torch.randn(2, 16, dtype=torch.bfloat16)
    graph, plan, stages = stages_of(module, (x,), {}, 2)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def test_a_plan_for_another_model_is_refused() -> None:
    source = from_module(Mlp(16).eval())
    graph = capture(source.module, (torch.randn(2, 16),), {})
    other = capture(from_module(Mlp(8).eval()).module, (torch.randn(2, 8),), {})
    with pytest.raises(PlanError, match="made for model"):
        Stage.load(graph, make_plan(other, 2), 0, source.weights)


def test_a_stage_that_is_not_in_the_plan_is_refused() -> None:
    source = from_module(Mlp().eval())
    graph = capture(source.module, (torch.randn(2, 16),), {})
    with pytest.raises(PlanError, match="found stage 2, expected 0 to 1"):
        Stage.load(graph, make_plan(graph, 2), 2, source.weights)


def test_a_buffer_without_values_is_named() -> None:
    with torch.device("meta"):
        module = Dicts().eval()
    args, kwargs = dicts(2, 0)
    with pytest.raises(CaptureError, match="the constant shift has no values"):
        capture(module, args, kwargs)


def test_a_buffer_without_values_in_a_sequential_is_named() -> None:
    with torch.device("meta"):
        module = nn.Sequential(WithBuffer()).eval()
    graph = capture(module, (torch.randn(2, 4),), {})
    with pytest.raises(WeightsError, match="shift of stage 0 has no values"):
        Stage.load(graph, make_plan(graph, 1), 0, ModuleWeights(module))


class WithBuffer(nn.Module):
    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.shift


def test_an_input_is_not_modified_behind_a_dropout() -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(self.drop(x).relu_())  # in eval mode, drop returns x itself

    x = torch.randn(3, 4)
    graph, plan, stages = stages_of(Drops().eval(), (x,), {}, 1)
    before = x.clone()
    run(graph, plan, stages, (x,))
    assert torch.equal(x, before)


def test_an_input_that_is_modified_and_returned() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            x.add_(1)
            return self.layer(self.layer(x) + y), x, y, self.layer.bias

    module, x, y = Adds().eval(), torch.randn(3, 4), torch.randn(3, 4)
    graph, plan, stages = stages_of(module, (x, y), {}, 2)
    with torch.no_grad():
        expected = module(x.clone(), y)
    assert_equal(run(graph, plan, stages, (x, y)), expected)
