"""Layers: no tracing, and several values from one layer to the next."""

from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import CaptureError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.sequential import Layers
from pipepar.model.split.crossing import cut_table
from tests.helpers.models import DependsOnValues, run, stages_of

torch.set_num_threads(1)


class Block(nn.Module):
    """Takes and returns a hidden state and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.linear(h) * mask, mask


class Branching(Block):
    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> Any:
        return super().forward(h, mask) if h.sum() > 0 else (h, mask + 1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> Any:
        return {"logits": self.linear(h), "rest": (mask, None, 3)}


class Doubles(nn.Module):
    def forward(self, h: torch.Tensor) -> Any:
        return h, h * 2


class Features(nn.Module):
    """Takes a tensor or a dict and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, features: Any) -> Any:
        h = features["h"] if isinstance(features, dict) else features
        return {"h": self.linear(h), "input": h}


def call_of(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 4), torch.rand(rows, 4)


def check(module: nn.Module, count: int, inputs: int = 2) -> Any:
    graph, plan, stages = stages_of(module.eval(), call_of(2)[:inputs], {}, count)
    for rows in (1, 5):
        args = call_of(rows)[:inputs]
        with torch.no_grad():
            expected = module(*args)
        assert_same(run(graph, plan, stages, args), expected)
    return graph


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_tuple_becomes_the_arguments_of_the_next_layer(count: int) -> None:
    graph = check(Layers(Block(), Block(), Block(), Head()), count)
    assert graph.inputs == ("h", "mask")
    assert graph.varies == "all sizes"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_tuple_of_a_layer_that_depends_on_values_is_unpacked(count: int) -> None:
    check(Layers(Block(), Branching(), Branching(), Block()), count)


@pytest.mark.parametrize("count", [1, 2])
def test_layer_with_an_optional_argument_receives_a_value(count: int) -> None:
    class Default(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, h: Any = None) -> Any:
            return self.linear(torch.zeros(1, 4) if h is None else h)

    check(Layers(nn.Linear(4, 4), DependsOnValues(), Default()), count, inputs=1)


def test_more_values_than_the_next_layer_requires_are_refused() -> None:
    class Optional(Block):
        def forward(self, h: torch.Tensor, mask: torch.Tensor, more: Any = None) -> Any:
            return h + (0 if more is None else more), mask

    class Three(Branching):
        def forward(self, h: torch.Tensor, mask: torch.Tensor) -> Any:
            return *super().forward(h, mask), mask

    module = Layers(Three(), Optional()).eval()
    graph, plan, stages = stages_of(module, call_of(2), {}, 1)
    with pytest.raises(CaptureError, match="a layer returned 3 values, expected 2"):
        run(graph, plan, stages, call_of(2))


@pytest.mark.parametrize("count", [1, 2])
def test_none_is_passed_as_a_value(count: int) -> None:
    class ReturnsNone(nn.Module):
        def forward(self, h: torch.Tensor) -> Any:
            return h + 1, None

    class AcceptsNone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, h: torch.Tensor, mask: Any) -> Any:
            return self.linear(h) if mask is None else mask, mask

    graph = check(Layers(ReturnsNone(), AcceptsNone(), AcceptsNone()), count, inputs=1)
    assert graph.template.leaves[1].value is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sequential_among_layers_does_not_unpack(count: int) -> None:
    class Packed(Block):
        def forward(self, both: Any) -> Any:  # type: ignore[override]
            return super().forward(*both)

    inner = nn.Sequential(nn.Linear(4, 4), Doubles(), Packed(), Packed())
    check(Layers(nn.Linear(4, 4), inner, Block(), Head()), count, inputs=1)


@pytest.mark.parametrize("before", [False, True])
def test_hooks_of_a_sequential_are_called(before: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if before:
        module.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    else:
        module.register_forward_hook(lambda _, args, result: result * 2)
    check(module, 2, inputs=1)


@pytest.mark.parametrize("several", [False, True])
def test_unknown_result_of_a_layer_may_alias_the_callers_tensor(several: bool) -> None:
    """The first layer depends on values, so it is unknown whether it returns its argument."""

    class Twice(DependsOnValues):
        def forward(self, x: torch.Tensor) -> Any:
            h = super().forward(x)
            return h, h

    class Rectifies(nn.ReLU):
        def forward(self, h: torch.Tensor, same: torch.Tensor) -> Any:  # type: ignore[override]
            return super().forward(h) + same

    layers: list[nn.Module] = [DependsOnValues(), nn.ReLU(inplace=True)]
    if several:
        layers = [Twice(), Rectifies(inplace=True)]
    module = Layers(*layers, nn.Linear(4, 4)).eval()
    graph, plan, stages = stages_of(module, (torch.ones(2, 4),), {}, 1)
    x = -torch.rand(3, 4)
    before = x.clone()
    run(graph, plan, stages, (x,))
    assert torch.equal(x, before)


@pytest.mark.parametrize("count", [1, 3])
def test_layers_with_single_values_work_as_in_a_sequential(count: int) -> None:
    check(Layers(nn.Linear(4, 4), DependsOnValues(), nn.Linear(4, 4)), count, inputs=1)


def test_no_cut_where_a_tuple_is_unpacked() -> None:
    graph = capture(Layers(Block(), Branching(), Block()).eval(), call_of(2), {})
    kinds = [node.op for node in graph.nodes]
    assert len(kinds) == 7
    legal = [cut.position for cut in cut_table(graph).cuts]
    assert legal == [p for p, kind in enumerate(kinds) if p and kind == "call_module"]


@pytest.mark.parametrize("count", [1, 2])
def test_no_cut_between_aliases_and_a_write_into_them(count: int) -> None:
    class Twice(DependsOnValues):
        def forward(self, x: torch.Tensor) -> Any:
            h = super().forward(x) * 1
            return h, h

    class Rectifies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, h: torch.Tensor, same: torch.Tensor) -> Any:
            self.act(h)
            return same - 1

    graph = check(Layers(nn.Linear(4, 4), Twice(), Rectifies(), nn.Linear(4, 4)), count, inputs=1)
    names = [graph.nodes[cut.position].name for cut in cut_table(graph).cuts]
    assert "_2" not in names
    assert "_3" in names


def test_sequential_passes_a_dict_as_one_value_and_is_not_cut_there() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Features(), Features())
    graph = check(module, 2, inputs=1)
    legal = [cut.position for cut in cut_table(graph).cuts]
    assert legal == [1]


def test_tuple_in_a_sequential_is_one_value() -> None:
    message = r"layer 1, a Block, is given 1 value, expected .*mask.*Pipeline\(layers=\[...\]\)"
    with pytest.raises(CaptureError, match=message):
        capture(nn.Sequential(nn.Linear(4, 4), Block()).eval(), (torch.randn(2, 4),), {})


def test_layer_with_too_many_values_is_named() -> None:
    with pytest.raises(CaptureError, match=r"layer 1, a Linear, is given 2 values"):
        capture(Layers(Block(), nn.Linear(4, 4)).eval(), call_of(2), {})


@pytest.mark.parametrize("written", [0, 1])
def test_layer_that_writes_in_place_does_not_change_the_callers_tensor(written: int) -> None:
    class Writes(nn.Module):
        def forward(self, h: torch.Tensor, mask: torch.Tensor) -> Any:
            (h, mask)[written].mul_(2)
            return h + 1, mask * 1

    module = Layers(Writes(), Block(), Block()).eval()
    graph, plan, stages = stages_of(module, call_of(2), {}, 2)
    h, mask = call_of(3)
    before = h.clone(), mask.clone()
    found = run(graph, plan, stages, (h, mask))
    assert torch.equal(h, before[0])
    assert torch.equal(mask, before[1])
    with torch.no_grad():
        assert_same(found, module(h, mask))
