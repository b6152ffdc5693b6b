"""Legal cuts, crossing tensors, costs, and the modules of stages."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.model.aliases import writes
from pipepar.model.capture.capture import capture
from pipepar.model.split.crossing import cut_table
from pipepar.model.split.cut import extract, parts
from pipepar.model.split.stage_sizes import is_scalar
from tests.helpers.models import InPlace, Mlp, Sized, Skips, Tied

torch.set_num_threads(1)


class Splits(nn.Module):
    """A tuple exists between two operations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> Any:
        left, right = self.layers[0](x).split(4, -1)
        return self.layers[1](torch.cat([right, left], -1))


class CountsRows(nn.Module):
    """Computes with the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        rows = x.shape[0] * x.shape[1]
        h = x
        for layer in self.layers:
            h = layer(h)
        return h.reshape(rows, 4) * rows


class Called(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.function(q, k, v)


def graph_of(module: nn.Module, *args: Any) -> Any:
    return capture(module.eval(), args, {})


def test_flops_of_a_traced_model() -> None:
    table = cut_table(graph_of(Mlp(), torch.randn(4, 16)))
    assert sum(table.flops) == 6 * 2 * 4 * 16 * 16
    assert table.costs[0] == table.flops[0] + 8 * 2 * 4 * 16 * 4  # no weights
    assert all(cost > 0 for cost in table.costs)  # relu has a cost too


@pytest.mark.parametrize("masked", [False, True])
def test_flops_of_attention(masked: bool) -> None:
    """One operation of torch has as many as its two products."""

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(6, 10, dtype=torch.bool) if masked else None
        return nn.functional.scaled_dot_product_attention(q, k, v, mask)

    def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 10, 8), torch.randn(2, 4, 10, 8)
    one, two = (
        sum(cut_table(graph_of(Called(function), q, k, v)).flops) for function in (fused, products)
    )
    assert one == two == 2 * (2 * 4) * 6 * 10 * (8 + 8)


def test_flops_of_a_sequence() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    table = cut_table(graph_of(module, torch.randn(4, 16)))
    assert table.flops == (2 * 4 * 16 * 16, 0, 2 * 4 * 16 * 2)
    assert table.crossing == (None, 4 * 16 * 4, 4 * 16 * 4)


def test_cost_is_flops_and_eight_for_each_byte_moved() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    table = cut_table(graph_of(module, torch.randn(4, 16)))
    wide, narrow = 4 * 16 * 4, 4 * 2 * 4  # bytes of activations; weights do not count
    assert table.costs == (
        2 * 4 * 16 * 16 + 8 * (wide + wide),
        8 * (wide + wide),
        2 * 4 * 16 * 2 + 8 * (wide + narrow),
    )
    first, second = table.cuts
    assert first.work_before == table.costs[0] / sum(table.costs)
    assert second.work_before == (table.costs[0] + table.costs[1]) / sum(table.costs)
    assert (first.module, second.module) == ("0", "1")


def test_view_has_no_cost_and_a_write_in_place_has() -> None:
    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.sin(x).t().relu_()

    table = cut_table(graph_of(Views(), torch.randn(4, 16).double()))
    whole = 4 * 16 * 8
    assert table.costs == (8 * 2 * whole, 0, 8 * 2 * whole)
    assert [table.node_costs[node].size for node in table.node_costs if node.op != "output"] == [
        whole
    ] * 4


def test_model_without_work_can_be_cut_anywhere() -> None:
    module = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    table = cut_table(graph_of(module, torch.randn(4, 16)))
    assert table.costs == (0, 0, 0)
    assert [cut.work_before for cut in table.cuts] == [0, 0]


def test_skip_connections_cross_the_cuts_they_span() -> None:
    graph = graph_of(Skips(), torch.randn(2, 3, 16, 16))
    table, names = cut_table(graph), [node.name for node in graph.nodes]
    image = 2 * 8 * 16 * 16 * 4
    # Before the middle layer cross the first skip and those of half and of quarter width and
    # height; the last one is also the layer's input.
    assert table.crossing[names.index("conv2d_3")] == image + image / 4 + image / 16


def test_no_cut_where_a_tuple_crosses() -> None:
    graph = graph_of(Splits(), torch.randn(2, 8))
    table, names = cut_table(graph), [node.name for node in graph.nodes]
    split = next(i for i, name in enumerate(names) if name.startswith("split"))
    assert table.crossing[split] is not None
    assert table.crossing[split + 1] is None
    assert table.crossing[split + 2] is None  # the tuple is still needed for its second element
    assert table.crossing[split + 3] is not None


def test_no_cut_between_a_value_and_the_last_write_into_it() -> None:
    graph = graph_of(InPlace(), torch.randn(2, 4, 8, 8))
    table = cut_table(graph)
    legal = [p for p, size in enumerate(table.crossing) if size is not None]
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        for target in writes(node):
            assert not set(legal) & set(range(position[target] + 1, position[node] + 1))
    assert len(legal) >= 6


def test_no_cut_before_a_child_of_a_sequence_that_writes_in_place() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    table = cut_table(graph_of(module, torch.randn(2, 4)))
    assert [size is None for size in table.crossing] == [True, True, False]


def test_tensor_in_the_output_crosses_every_later_cut() -> None:
    class ReturnsBoth(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            h = self.layers[0](x)
            return self.layers[1](torch.sin(h)), h

    graph = graph_of(ReturnsBoth(), torch.randn(2, 8))
    assert [(cut.tensors, cut.nbytes) for cut in cut_table(graph).cuts] == [(1, 64), (2, 128)]


def test_input_needed_at_the_end_crosses_every_cut() -> None:
    class Adds(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            return self.layers[1](self.layers[0](x)) + x

    cuts = cut_table(graph_of(Adds(), torch.randn(2, 8))).cuts
    assert [(cut.tensors, cut.nbytes) for cut in cuts] == [(2, 128), (2, 128)]


@pytest.mark.parametrize(("module", "width"), [(Sized(), 8), (CountsRows(), 4)])
def test_sizes_do_not_count_as_crossing_tensors(module: nn.Module, width: int) -> None:
    table = cut_table(graph_of(module, torch.randn(2, 3, width)))
    assert {(cut.tensors, cut.nbytes) for cut in table.cuts} == {(1, 2 * 3 * width * 4)}


def test_tensor_does_not_cross_only_for_its_size() -> None:
    class Positives(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            positive = x[x > 0]
            return self.layers[1](self.layers[0](x)) * positive.shape[0]

    table = cut_table(graph_of(Positives(), torch.randn(2, 8)))
    crossing = {cut.operation: cut.tensors for cut in table.cuts}
    assert crossing == {"gt": 2, "index": 1, "sym_size_int_3": 1, "linear": 1, "linear_1": 1}


def test_weight_in_the_output_comes_from_the_last_stage() -> None:
    class ReturnsWeight(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            return self.layers[1](self.layers[0](x)), self.layers[0].bias

    graph = graph_of(ReturnsWeight(), torch.randn(2, 8))
    first, last = parts(graph, [1])
    assert last.outputs == graph.outputs
    assert "layers.0.bias" in first.weights
    assert "layers.0.bias" in last.weights


def test_tied_weight_counts_once_in_each_stage() -> None:
    graph = graph_of(Tied(), torch.zeros(2, 3, dtype=torch.int64))
    (whole,) = parts(graph, [])
    assert whole.weight_bytes == 4 * (40 * 8 + 3 * (8 * 8 + 8))
    assert len(whole.weights) == len(set(whole.weights)) == 7
    first, last = parts(graph, [2])
    assert "embed.weight" in first.weights
    assert "embed.weight" in last.weights  # each has its own copy


@pytest.mark.parametrize("module", [Sized(), CountsRows()])
def test_sizes_are_read_from_received_tensors(module: nn.Module) -> None:
    graph = graph_of(module, torch.randn(2, 3, 8 if isinstance(module, Sized) else 4))
    scalars = {node.name for node in graph.nodes if is_scalar(node)}
    legal = [p for p, size in enumerate(cut_table(graph).crossing) if size is not None]
    assert scalars
    for cut in legal[-4:]:
        last = parts(graph, [cut])[1]
        received = set(last.inputs) & scalars
        # In Sized, B and S cannot be read from a tensor of shape [B * S, 8], so they may cross.
        assert not received or isinstance(module, Sized)


def test_size_of_no_received_tensor_crosses_as_a_number() -> None:
    graph = graph_of(Sized(), torch.randn(2, 3, 8))
    scalars = {node.name for node in graph.nodes if is_scalar(node)}
    names = [node.name for node in graph.nodes]
    first, last = parts(graph, [names.index("linear_2")])
    received = [name for name in last.inputs if name in scalars]
    assert received
    stage = extract(graph, first)
    assert {"x"} == set(first.inputs)
    assert set(received) <= set(first.outputs)
    assert "sym_size" in stage.code  # a stage without weights cannot run


def test_each_weight_is_in_one_part() -> None:
    graph = graph_of(Mlp(), torch.randn(2, 16))
    cut = [node.name for node in graph.nodes].index("linear_3")
    first, last = parts(graph, [cut])
    assert first.weights == tuple(
        f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    )
    assert set(first.weights).isdisjoint(last.weights)
    assert first.weight_bytes == last.weight_bytes == 3 * (16 * 16 + 16) * 4


def test_extracted_stage_has_only_its_own_weights_on_meta() -> None:
    graph = graph_of(Mlp(), torch.randn(2, 16))
    cut = [node.name for node in graph.nodes].index("linear_3")
    last = parts(graph, [cut])[1]
    stage = extract(graph, last)
    names = dict(stage.named_parameters())
    assert set(names) == set(last.weights)
    assert all(tensor.is_meta for tensor in names.values())
    assert [n.name for n in stage.graph.find_nodes(op="placeholder")] == list(last.inputs)


def test_extraction_does_not_modify_the_graph() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    graph = graph_of(module, torch.randn(2, 4))
    one = extract(graph, parts(graph, [1])[0])
    two = extract(graph, parts(graph, [1])[0])
    one.get_submodule("0").weight = nn.Parameter(torch.ones(4, 4))
    assert two.get_submodule("0").weight.is_meta
    assert graph.module.get_submodule("0").weight.is_meta
