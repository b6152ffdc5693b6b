"""Layers are not traced: they may do anything, and several values may go from one to the next."""

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
    """Takes and gives a hidden state and a mask."""

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
    """Takes and gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, given: Any) -> Any:
        h = given["h"] if isinstance(given, dict) else given
        return {"h": self.linear(h), "again": h}


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
def test_a_tuple_gives_the_next_layer_its_arguments(count: int) -> None:
    graph = check(Layers(Block(), Block(), Block(), Head()), count)
    assert graph.inputs == ("h", "mask")
    assert graph.varies == "all sizes"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_also_after_a_layer_that_depends_on_values(count: int) -> None:
    check(Layers(Block(), Branching(), Branching(), Block()), count)


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_that_could_do_without_a_value_is_given_one(count: int) -> None:
    class Default(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, h: Any = None) -> Any:
            return self.linear(torch.zeros(1, 4) if h is None else h)

    check(Layers(nn.Linear(4, 4), DependsOnValues(), Default()), count, inputs=1)


def test_more_values_than_could_be_known_are_refused() -> None:
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
def test_none_is_a_value(count: int) -> None:
    class Gives(nn.Module):
        def forward(self, h: torch.Tensor) -> Any:
            return h + 1, None

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, h: torch.Tensor, mask: Any) -> Any:
            return self.linear(h) if mask is None else mask, mask

    graph = check(Layers(Gives(), Takes(), Takes()), count, inputs=1)
    assert graph.template.leaves[1].value is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sequential_among_the_layers_keeps_its_own_rule(count: int) -> None:
    class Packed(Block):
        def forward(self, both: Any) -> Any:  # type: ignore[override]
            return super().forward(*both)

    inner = nn.Sequential(nn.Linear(4, 4), Doubles(), Packed(), Packed())
    check(Layers(nn.Linear(4, 4), inner, Block(), Head()), count, inputs=1)


@pytest.mark.parametrize("before", [False, True])
def test_hooks_are_not_passed_over(before: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if before:
        module.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    else:
        module.register_forward_hook(lambda _, given, made: made * 2)
    check(module, 2, inputs=1)


@pytest.mark.parametrize("several", [False, True])
def test_what_a_layer_may_return_as_it_is_counts_as_the_callers_tensor(several: bool) -> None:
    """It depends on values, so that nothing is known of what it makes."""

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
def test_layers_of_one_value_are_as_in_a_sequential(count: int) -> None:
    check(Layers(nn.Linear(4, 4), DependsOnValues(), nn.Linear(4, 4)), count, inputs=1)


def test_no_cut_while_a_tuple_is_taken_apart() -> None:
    graph = capture(Layers(Block(), Branching(), Block()).eval(), call_of(2), {})
    kinds = [node.op for node in graph.nodes]
    assert len(kinds) == 7
    legal = [cut.position for cut in cut_table(graph).cuts]
    assert legal == [p for p, kind in enumerate(kinds) if p and kind == "call_module"]


@pytest.mark.parametrize("count", [1, 2])
def test_values_that_share_memory_do_not_cross_before_a_write(count: int) -> None:
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


def test_a_sequential_passes_a_dict_whole_and_is_not_cut_there() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Features(), Features())
    graph = check(module, 2, inputs=1)
    legal = [cut.position for cut in cut_table(graph).cuts]
    assert legal == [1]


def test_a_sequential_does_not_unpack() -> None:
    message = r"layer 1, a Block, is given 1 value, expected .*mask.*Pipeline\(layers=\[...\]\)"
    with pytest.raises(CaptureError, match=message):
        capture(nn.Sequential(nn.Linear(4, 4), Block()).eval(), (torch.randn(2, 4),), {})


def test_layers_that_do_not_fit_are_named() -> None:
    with pytest.raises(CaptureError, match=r"layer 1, a Linear, is given 2 values"):
        capture(Layers(Block(), nn.Linear(4, 4)).eval(), call_of(2), {})


@pytest.mark.parametrize("written", [0, 1])
def test_a_layer_that_writes_leaves_the_callers_tensor(written: int) -> None:
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
