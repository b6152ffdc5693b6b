"""Changes to an exported graph: regions, dead code, writes into inputs and state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import CaptureError
from pipepar.model.capture.capture import capture
from pipepar.model.split.crossing import cut_table
from tests.helpers.models import run, stages_of

torch.set_num_threads(1)

LINEAR = 2 * 2 * 4 * 4
"""FLOPs of nn.Linear(4, 4) with 2 rows."""


class Computes(nn.Module):
    """Two layers, a buffer, and a function that computes with them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def autocast_in_autocast(own: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", enabled=False):
        with torch.autocast("cpu", enabled=False):
            x = own.a(x).sin()
        return own.b(x)


def autocast_in_gradients(own: Any, x: torch.Tensor) -> Any:
    with torch.enable_grad():
        with torch.autocast("cpu", enabled=False):
            x = own.a(x).sin()
        return own.b(x)


def three_deep(own: Any, x: torch.Tensor) -> Any:
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            with torch.autocast("cpu", enabled=False):
                x = own.a(x).sin()
            x = x * 1
        return own.b(x)


@pytest.mark.parametrize("function", [autocast_in_autocast, autocast_in_gradients, three_deep])
def test_nested_regions_are_inlined(function: Any) -> None:
    module, x = Computes(function).eval(), torch.randn(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 2)
    computed = [n for n in graph.nodes if "mul" not in n.name]
    assert [str(node.target) for node in computed] == [
        *("aten.linear.default", "aten.sin.default", "aten.linear.default")
    ]
    table = cut_table(graph)
    assert [flops for flops in table.flops if flops] == [LINEAR, LINEAR]
    assert None not in table.crossing[1:]
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def test_region_with_enabled_autocast_stays() -> None:
    def mixed(own: Any, x: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = own.a(x)
        return own.b(h.float())

    module, x = Computes(mixed).eval(), torch.randn(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    assert torch.ops.higher_order.wrap_with_autocast in [node.target for node in graph.nodes]
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def unused_result(own: Any, x: torch.Tensor) -> Any:
    own.b(x)
    return own.a(x)


def sizes_only_for_checks(own: Any, x: torch.Tensor) -> Any:
    torch._check(x.shape[0] * 4 > 1)  # type: ignore[no-untyped-call]
    return own.a(x) if x.shape[0] * 3 > 2 else x


@pytest.mark.parametrize("function", [unused_result, sizes_only_for_checks])
def test_unused_nodes_are_removed(function: Any) -> None:
    graph = capture(Computes(function).eval(), (torch.randn(2, 4),), {})
    assert [node.name for node in graph.nodes if node.op == "call_function"] == [
        graph.outputs[0],
    ]
    assert cut_table(graph).flops == (LINEAR,)
    assert set(graph.weights) == {
        "a.weight",
        "a.bias",
    }  # no rank loads those of layer b


def through_a_dropout(own: Any, x: torch.Tensor) -> Any:
    return own.a(own.drop(x).relu_())


def through_an_undeclared_alias(own: Any, x: torch.Tensor) -> Any:
    return own.a(torch.atleast_2d(x).type_as(x).relu_())  # type: ignore[no-untyped-call]


def through_a_part(own: Any, x: torch.Tensor) -> Any:
    left, _ = x.split(2, -1)  # type: ignore[no-untyped-call]
    left.neg_()
    return own.a(x)


def in_a_list(own: Any, x: torch.Tensor) -> Any:
    h = own.b(x)
    torch._foreach_add_([h, x], 1.0)
    return own.a(x + h)


def by_keyword(own: Any, x: torch.Tensor) -> Any:
    torch.mul(own.b(x), 2, out=x)
    return own.a(x)


@pytest.mark.parametrize(
    "function",
    [through_a_dropout, through_an_undeclared_alias, through_a_part, in_a_list, by_keyword],
)
def test_writes_do_not_change_the_callers_tensor(function: Any) -> None:
    module, x = Computes(function).eval(), torch.randn(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    before = x.clone()
    found = run(graph, plan, stages, (x,))
    assert torch.equal(x, before)
    with torch.no_grad():
        assert torch.equal(found, module(x))


def test_input_that_is_modified_and_returned_has_its_new_values() -> None:
    def modify_and_return(own: Any, x: torch.Tensor) -> Any:
        torch._foreach_add_([x], 1.0)
        return own.a(x), x

    module, x = Computes(modify_and_return).eval(), torch.randn(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    found = run(graph, plan, stages, (x,))
    with torch.no_grad():
        expected = module(x.clone())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def own_buffer(own: Any, x: torch.Tensor) -> Any:
    own.shift.add_(1)
    return own.a(x) + own.shift


def own_buffer_through_a_view(own: Any, x: torch.Tensor) -> Any:
    own.shift[:2].add_(1)
    return own.a(x) + own.shift


def own_buffer_through_an_undeclared_alias(own: Any, x: torch.Tensor) -> Any:
    torch.atleast_1d(own.shift).add_(1)  # type: ignore[no-untyped-call]
    return own.a(x) + own.shift


@pytest.mark.parametrize(
    "function", [own_buffer, own_buffer_through_a_view, own_buffer_through_an_undeclared_alias]
)
def test_model_that_writes_into_its_own_state_is_refused(function: Any) -> None:
    with pytest.raises(CaptureError, match=r"add_ writes into shift while it computes"):
        capture(Computes(function).eval(), (torch.randn(2, 4),), {})
