"""Where a graph may be cut, what crosses, and that a stage stands by itself."""

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
    """A tuple lives between two operations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> Any:
        left, right = self.layers[0](x).split(4, -1)
        return self.layers[1](torch.cat([right, left], -1))


class Counted(nn.Module):
    """How many rows remain depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        rows = x.shape[0] * x.shape[1]
        h = x
        for layer in self.layers:
            h = layer(h)
        return h.reshape(rows, 4) * rows


def graph_of(module: nn.Module, *args: Any) -> Any:
    return capture(module.eval(), args, {})


def test_flops_are_those_of_the_matrix_products() -> None:
    table = cut_table(graph_of(Mlp(), torch.randn(4, 16)))
    assert sum(table.flops) == 6 * 2 * 4 * 16 * 16
    assert table.costs[0] == table.flops[0] + 8 * 2 * 4 * 16 * 4  # weights stay where they are
    assert all(cost > 0 for cost in table.costs)  # relu has its price too


def test_flops_of_a_sequence_are_counted_too() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    table = cut_table(graph_of(module, torch.randn(4, 16)))
    assert table.flops == (2 * 4 * 16 * 16, 0, 2 * 4 * 16 * 2)
    assert table.crossing == (None, 4 * 16 * 4, 4 * 16 * 4)


def test_a_price_is_the_operations_and_eight_for_each_byte_that_is_moved() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    table = cut_table(graph_of(module, torch.randn(4, 16)))
    wide, narrow = 4 * 16 * 4, 4 * 2 * 4  # bytes of activations; weights stay where they are
    assert table.costs == (
        2 * 4 * 16 * 16 + 8 * (wide + wide),
        8 * (wide + wide),
        2 * 4 * 16 * 2 + 8 * (wide + narrow),
    )
    first, second = table.cuts
    assert first.done == table.costs[0] / sum(table.costs)
    assert second.done == (table.costs[0] + table.costs[1]) / sum(table.costs)
    assert (first.module, second.module) == ("0", "1")


def test_a_view_moves_nothing_and_a_write_in_place_does() -> None:
    class Views(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.sin(x).t().relu_()

    table = cut_table(graph_of(Views(), torch.randn(4, 16).double()))
    whole = 4 * 16 * 8
    assert table.costs == (8 * 2 * whole, 0, 8 * 2 * whole)
    assert [table.counted[node].size for node in table.counted if node.op != "output"] == [
        whole
    ] * 4


def test_what_a_model_without_work_hands_on_is_cut_anywhere() -> None:
    module = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    table = cut_table(graph_of(module, torch.randn(4, 16)))
    assert table.costs == (0, 0, 0)
    assert [cut.done for cut in table.cuts] == [0, 0]


def test_skips_are_counted_where_they_pass() -> None:
    graph = graph_of(Skips(), torch.randn(2, 3, 16, 16))
    table, names = cut_table(graph), [node.name for node in graph.nodes]
    image = 2 * 8 * 16 * 16 * 4
    # Before the middle layer: the first skip, and two values of a half and a quarter its width;
    # the quarter is both skip and input.
    assert table.crossing[names.index("conv2d_3")] == image + image / 4 + image / 16


def test_no_cut_while_a_tuple_lives() -> None:
    graph = graph_of(Splits(), torch.randn(2, 8))
    table, names = cut_table(graph), [node.name for node in graph.nodes]
    split = next(i for i, name in enumerate(names) if name.startswith("split"))
    assert table.crossing[split] is not None
    assert table.crossing[split + 1] is None
    assert table.crossing[split + 2] is None  # one half taken out, the other still inside
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


def test_a_sequences_in_place_child_stays_with_its_input() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    table = cut_table(graph_of(module, torch.randn(2, 4)))
    assert [size is None for size in table.crossing] == [True, True, False]


def test_a_tensor_that_is_its_own_result_and_used_early_crosses_to_the_end() -> None:
    class Keeps(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            h = self.layers[0](x)
            return self.layers[1](torch.sin(h)), h

    graph = graph_of(Keeps(), torch.randn(2, 8))
    assert [(cut.tensors, cut.nbytes) for cut in cut_table(graph).cuts] == [(1, 64), (2, 128)]


def test_an_input_that_is_needed_at_the_end_crosses_everywhere() -> None:
    class Adds(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            return self.layers[1](self.layers[0](x)) + x

    cuts = cut_table(graph_of(Adds(), torch.randn(2, 8))).cuts
    assert [(cut.tensors, cut.nbytes) for cut in cuts] == [(2, 128), (2, 128)]


@pytest.mark.parametrize(("module", "width"), [(Sized(), 8), (Counted(), 4)])
def test_numbers_are_no_tensors_that_cross(module: nn.Module, width: int) -> None:
    table = cut_table(graph_of(module, torch.randn(2, 3, width)))
    assert {(cut.tensors, cut.nbytes) for cut in table.cuts} == {(1, 2 * 3 * width * 4)}


def test_a_tensor_does_not_cross_for_its_size_alone() -> None:
    class Positives(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            some = x[x > 0]
            return self.layers[1](self.layers[0](x)) * some.shape[0]

    table = cut_table(graph_of(Positives(), torch.randn(2, 8)))
    crossing = {cut.operation: cut.tensors for cut in table.cuts}
    assert crossing == {"gt": 2, "index": 1, "sym_size_int_3": 1, "linear": 1, "linear_1": 1}


def test_a_result_that_is_a_weight_comes_from_the_last_stage() -> None:
    class Gives(Splits):
        def forward(self, x: torch.Tensor) -> Any:
            return self.layers[1](self.layers[0](x)), self.layers[0].bias

    graph = graph_of(Gives(), torch.randn(2, 8))
    first, last = parts(graph, [1])
    assert last.outputs == graph.outputs
    assert "layers.0.bias" in first.weights
    assert "layers.0.bias" in last.weights


def test_a_tied_weight_is_counted_once_in_a_stage() -> None:
    graph = graph_of(Tied(), torch.zeros(2, 3, dtype=torch.int64))
    (whole,) = parts(graph, [])
    assert whole.weight_bytes == 4 * (40 * 8 + 3 * (8 * 8 + 8))
    assert len(whole.weights) == len(set(whole.weights)) == 7
    first, last = parts(graph, [2])
    assert "embed.weight" in first.weights
    assert "embed.weight" in last.weights  # each has its own copy


@pytest.mark.parametrize("module", [Sized(), Counted()])
def test_sizes_do_not_cross(module: nn.Module) -> None:
    graph = graph_of(module, torch.randn(2, 3, 8 if isinstance(module, Sized) else 4))
    scalars = {node.name for node in graph.nodes if is_scalar(node)}
    legal = [p for p, size in enumerate(cut_table(graph).crossing) if size is not None]
    assert scalars
    for cut in legal[-4:]:
        last = parts(graph, [cut])[1]
        received = set(last.inputs) & scalars
        # [B * S, 8] does not tell B and S apart, so the input itself or nothing else may tell.
        assert not received or isinstance(module, Sized)


def test_a_size_that_nothing_tells_crosses_as_a_number() -> None:
    graph = graph_of(Sized(), torch.randn(2, 3, 8))
    scalars = {node.name for node in graph.nodes if is_scalar(node)}
    names = [node.name for node in graph.nodes]
    first, last = parts(graph, [names.index("linear_2")])
    received = [name for name in last.inputs if name in scalars]
    assert received
    x = torch.randn(4, 5, 8)
    stage = extract(graph, first)
    assert {"x"} == set(first.inputs)
    # Without weights a stage cannot run; its sizes can be read in the code.
    assert set(received) <= set(first.outputs)
    assert "sym_size" in stage.code
    assert x.dim() == 3


def test_parts_name_each_weight_once() -> None:
    graph = graph_of(Mlp(), torch.randn(2, 16))
    cut = [node.name for node in graph.nodes].index("linear_3")
    first, last = parts(graph, [cut])
    assert first.weights == tuple(
        f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    )
    assert set(first.weights).isdisjoint(last.weights)
    assert first.weight_bytes == last.weight_bytes == 3 * (16 * 16 + 16) * 4


def test_an_extracted_stage_has_no_storage_and_only_its_own_weights() -> None:
    graph = graph_of(Mlp(), torch.randn(2, 16))
    cut = [node.name for node in graph.nodes].index("linear_3")
    last = parts(graph, [cut])[1]
    stage = extract(graph, last)
    names = dict(stage.named_parameters())
    assert set(names) == set(last.weights)
    assert all(tensor.is_meta for tensor in names.values())
    assert [n.name for n in stage.graph.find_nodes(op="placeholder")] == list(last.inputs)


def test_extraction_leaves_the_graph_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    graph = graph_of(module, torch.randn(2, 4))
    one = extract(graph, parts(graph, [1])[0])
    two = extract(graph, parts(graph, [1])[0])
    one.get_submodule("0").weight = nn.Parameter(torch.ones(4, 4))
    assert two.get_submodule("0").weight.is_meta
    assert graph.module.get_submodule("0").weight.is_meta
