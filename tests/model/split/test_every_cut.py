"""Every legal cut gives the model's results, with shared memory and with sizes used later."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import from_module
from pipepar.model.split.crossing import cut_table
from pipepar.model.split.cut import extract, parts
from tests.helpers.models import plan_of, run

torch.set_num_threads(1)


class Computes(nn.Module):
    """Two layers, a buffer, and a function that computes with them."""

    scale: torch.Tensor

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def undeclared_alias(own: Computes, x: torch.Tensor) -> Any:
    """`atleast_2d` and `type_as` return their argument, which their schemas do not declare."""
    h = own.a(x)
    same = torch.atleast_2d(h).type_as(h)  # type: ignore[no-untyped-call]
    before = h * 2
    same.relu_()
    return own.b(h) + before


def views_of_a_list(own: Computes, x: torch.Tensor) -> Any:
    """`broadcast_tensors` returns views of tensors in a list, which its schema does not declare."""
    h, g = own.a(x), own.b(x)
    one, _ = torch.broadcast_tensors(h, g)  # type: ignore[no-untyped-call]
    before = h * 2
    one.relu_()
    return own.b(h) + before + g


def written_in_a_list(own: Computes, x: torch.Tensor) -> Any:
    h, g = own.a(x), own.b(x)
    before = h * 2
    torch._foreach_add_([h, g], 1.0)
    return own.b(h + g) + before


def written_by_keyword(own: Computes, x: torch.Tensor) -> Any:
    h = own.a(x)
    before = h * 2
    torch.mul(before, 3, out=h)
    return own.b(h) + before


def part_of_a_tuple(own: Computes, x: torch.Tensor) -> Any:
    h = own.a(x)
    left, _ = h.split(2, -1)
    before = own.b(h)
    left.neg_()
    return own.b(h) + before


def view_of_a_view(own: Computes, x: torch.Tensor) -> Any:
    h = own.a(x)
    row = h.t()[1]
    before = own.b(h)
    row.neg_()
    return own.b(h) + before


def written_twice(own: Computes, x: torch.Tensor) -> Any:
    h = own.a(x)
    h.relu_()
    before = own.b(h)
    h.add_(1)
    return own.b(h) + before


def result_used_early(own: Computes, x: torch.Tensor) -> Any:
    h = own.a(x)
    return own.b(torch.sin(h)), h


def written_often(own: Computes, x: torch.Tensor) -> Any:
    """Storage reused for a later value does not make it an alias of the earlier one."""
    for _ in range(6):
        x = own.b(own.a(x).relu_()).sin()
    return x


class Case(NamedTuple):
    function: Callable[..., Any]
    legal: list[str]
    """Names of the operations before each legal cut."""


often = [
    name + (f"_{at}" if at else "")
    for turn in range(6)
    for name, at in (("relu_", turn), ("linear", 2 * turn + 1), ("sin", turn))
]
MEMORY = [
    Case(undeclared_alias, ["relu_", "linear_1"]),
    Case(views_of_a_list, ["relu_", "linear_2", "add"]),
    Case(written_in_a_list, ["_foreach_add_", "add", "linear_2"]),
    Case(written_by_keyword, ["mul_1", "linear_1"]),
    Case(part_of_a_tuple, ["neg_", "linear_2"]),
    Case(view_of_a_view, ["neg_", "linear_2"]),
    Case(written_twice, ["add_", "linear_2"]),
    Case(result_used_early, ["linear", "sin"]),
    Case(written_often, often[:-1]),
]


def length_alone(own: Computes, x: torch.Tensor) -> Any:
    """Uses at the end a size that no later tensor has."""
    batch, length, width = x.shape
    h = own.b(own.a(x.reshape(batch * length, width)))
    return h.sin() / (length + 1)


def product_of_sizes(own: Computes, x: torch.Tensor) -> Any:
    """Uses at the end sizes that later tensors have too."""
    h = own.b(own.a(x))
    return h.reshape(x.shape[0] * x.shape[1], 4) * (x.shape[0] * x.shape[1] + 1)


def size_of_a_result(own: Computes, x: torch.Tensor) -> Any:
    """Uses at the end the size of a value that does not cross."""
    h = own.a(x)
    wide = torch.cat([h, h, x], 1)
    g = own.b(h.mean(1))
    return g * wide.shape[1]


def number_in_the_output(own: Computes, x: torch.Tensor) -> Any:
    h = own.a(x)
    return own.b(h.reshape(-1, 4)), x.shape[0] * x.shape[1], h.shape[1]


def number_of_positives(own: Computes, x: torch.Tensor) -> Any:
    """Uses at the end a size that depends on values, of a tensor with no other use."""
    positive = x[x > 0]
    return own.b(own.a(x).sin()) * positive.shape[0]


def largest_value(own: Computes, x: torch.Tensor) -> Any:
    largest = x.max().item()
    return own.b(own.a(x).sin()) * (largest + 1)


def number_from_a_buffer(own: Computes, x: torch.Tensor) -> Any:
    """Uses at the end a number from a buffer."""
    return own.b(own.a(x).sin()) * own.scale.item()


SIZES = [
    *(length_alone, product_of_sizes, size_of_a_result, number_in_the_output),
    *(number_of_positives, largest_value, number_from_a_buffer),
]


def captured(function: Callable[..., Any], x: torch.Tensor) -> tuple[nn.Module, Graph, list[Any]]:
    torch.manual_seed(0)
    module = Computes(function).eval()
    graph = capture(from_module(module).module, (x,), {})
    return module, graph, list(cut_table(graph).cuts)


def assert_each_cut_gives_the_same(
    module: nn.Module, graph: Graph, cuts: list[Any], x: Any
) -> None:
    weights = from_module(module).weights
    with torch.no_grad():
        expected = module(x.clone())
    expected = expected if isinstance(expected, tuple) else (expected,)
    for cut in cuts:
        plan = plan_of(graph, [cut.position])
        stages = [Stage.load(graph, plan, index, weights) for index in range(2)]
        found = run(graph, plan, stages, (x,))
        found = found if isinstance(found, tuple) else (found,)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, f"cut after {cut.operation}: found {one}, expected {other}"


@pytest.mark.parametrize("case", MEMORY, ids=lambda case: case.function.__name__)
def test_legal_cuts_with_shared_memory(case: Case) -> None:
    module, graph, cuts = captured(case.function, torch.randn(2, 4))
    assert [cut.operation for cut in cuts] == case.legal
    assert_each_cut_gives_the_same(module, graph, cuts, torch.randn(3, 4))


@pytest.mark.parametrize("function", SIZES, ids=lambda function: function.__name__)
def test_legal_cuts_with_sizes_used_later(function: Callable[..., Any]) -> None:
    module, graph, cuts = captured(function, torch.randn(2, 3, 4))
    assert len(cuts) >= 2
    assert_each_cut_gives_the_same(module, graph, cuts, torch.randn(5, 7, 4))


@pytest.mark.parametrize("function", SIZES, ids=lambda function: function.__name__)
def test_stage_has_the_inputs_of_its_part(function: Callable[..., Any]) -> None:
    _, graph, cuts = captured(function, torch.randn(2, 3, 4))
    for cut in cuts:
        for part in parts(graph, [cut.position]):
            inputs = extract(graph, part).graph.find_nodes(op="placeholder")
            assert [node.name for node in inputs] == list(part.inputs), f"after {cut.operation}"
