"""Operations of graphs at different numbers of rows."""

from typing import Any

import pytest
import torch
from torch import nn

from pipepar.microbatch import TensorSpec
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.capture.sequential import Layers
from pipepar.model.source.on_meta import params_on_meta
from pipepar.model.split.operations import (
    Needed,
    Operation,
    accepts_rows,
    distinct,
    example_rows,
    operations_of,
)
from pipepar.planner.op_benchmark import OpBenchmark
from tests.helpers.models import InPlace, Mlp, Skips, Tied
from tests.helpers.zoo import ZOO, ByRow, ZooModel

torch.set_num_threads(1)

CPU = torch.device("cpu")
FEW = ("mlp", "llama-bf16", "mixtral", "unet", "dicts", "by row")
SLOW = ("t5", "mamba")  # tracing takes long


def captured(module: nn.Module, *args: torch.Tensor) -> Graph:
    return capture(module.eval(), args, {})


def encoder(layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def of_type(operations: list[Operation], name: str) -> list[Operation]:
    return [operation for operation in operations if name in operation.signature]


def all_of(graph: Graph, rows: int) -> list[Operation]:
    return list(operations_of(graph, rows).values())


def test_every_compute_node_has_an_operation() -> None:
    graph = captured(Mlp(), torch.randn(2, 16))
    operations = operations_of(graph, 2)
    assert list(operations) == graph.nodes
    assert [operation.target for operation in operations.values()] == [
        node.target for node in graph.nodes
    ]


def test_equal_layers_have_equal_operations() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    one, three = (captured(encoder(count), torch.randn(2, 5, 16)) for count in (1, 3))
    torch.backends.mha.set_fastpath_enabled(True)
    assert len(three.nodes) > 2 * len(one.nodes)
    few, many = (distinct(operations_of(graph, 2)) for graph in (one, three))
    assert {each.signature for each in many} == {each.signature for each in few}
    assert len(many) == len(few) == len({each.signature for each in few})


def test_layers_of_different_widths_have_different_operations() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8))
    operations = operations_of(captured(model, torch.randn(2, 8)), 2)
    assert len(operations) == 4
    assert len(distinct(operations)) == 3


def test_distinct_operations_are_in_the_order_of_the_graph() -> None:
    operations = operations_of(captured(Mlp(), torch.randn(2, 16)), 2)
    linear, relu = distinct(operations)
    assert "linear" in linear.signature
    assert "relu" in relu.signature


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_activations_have_the_given_number_of_rows(rows: int) -> None:
    graph = captured(Mlp(), torch.randn(3, 16))
    assert example_rows(graph) == 3
    for operation in of_type(all_of(graph, rows), "linear"):
        activation, weight, bias = operation.needed
        assert activation == Needed(TensorSpec(torch.float32, (rows, 16), (16, 1)), False, False)
        assert weight.spec.shape == (16, 16)
        assert bias.spec.shape == (16,)


def test_reshaped_activations_follow_the_number_of_rows() -> None:

    class Reshapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> Any:
            batch, length, width = x.shape
            return self.layer(x.reshape(batch * length, width)).view(batch, length, width)

    graph = captured(Reshapes(), torch.randn(2, 5, 8))
    (linear,) = of_type(all_of(graph, 6), "aten.linear")
    assert linear.needed[0].spec.shape == (30, 8)


def test_weights_and_their_requires_grad_are_recorded() -> None:
    model = Mlp()
    model.layers[0].bias.requires_grad_(False)
    graph = captured(model, torch.randn(2, 16))
    first, second = of_type(all_of(graph, 2), "linear")[:2]
    assert [(each.weight, each.requires_grad) for each in first.needed] == [
        *((False, False), (True, True), (True, False))
    ]
    assert [(each.weight, each.requires_grad) for each in second.needed] == [
        *((False, False), (True, True), (True, True))
    ]
    assert first.signature != second.signature  # torch may choose another kernel


def test_layers_of_a_sequence_are_modules_on_meta() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    operations = all_of(captured(model, torch.randn(2, 8)), 5)
    targets = [operation.target for operation in operations]
    assert all(isinstance(target, nn.Module) for target in targets)
    tensors = [
        p for target in targets if isinstance(target, nn.Module) for p in target.parameters()
    ]
    assert all(tensor.is_meta and tensor.requires_grad for tensor in tensors)
    assert [each.spec.shape for operation in operations for each in operation.needed] == [
        (5, 8)
    ] * 4
    assert not any(each.weight for operation in operations for each in operation.needed)
    signatures = [operation.signature for operation in operations]
    assert signatures[0] == signatures[2]
    assert len(set(signatures)) == 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, h: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.linear(h) * mask, mask


def test_layers_that_pass_tuples() -> None:
    graph = captured(Layers(Block(), Block()), torch.randn(2, 3, 4), torch.ones(2, 3, 1))
    operations = operations_of(graph, 6)
    assert list(operations) == graph.nodes
    blocks = [each for each in operations.values() if isinstance(each.target, Block)]
    assert [[each.spec.shape for each in block.needed] for block in blocks] == [
        [(6, 3, 4), (6, 3, 1)]
    ] * 2
    assert blocks[0].signature == blocks[1].signature
    assert None not in OpBenchmark(distinct(operations), CPU, 0).medians()


def test_graph_with_a_fixed_batch_is_described_at_that_batch() -> None:
    graph = captured(ByRow(), torch.randn(3, 8))
    operations = operations_of(graph, 3)
    assert list(operations) == graph.nodes
    linears = of_type(list(operations.values()), "linear")
    assert len(linears) == 12
    assert linears[0].needed[0].spec.shape == (8,)


def test_strides_of_channels_last_tensors_are_recorded() -> None:
    model = Skips().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    convolution = of_type(all_of(captured(model, x), 2), "conv2d")[1]
    assert convolution.needed[0].spec.stride == (2048, 1, 128, 8)
    assert convolution.needed[1].spec.stride == (72, 1, 24, 8)


def test_operations_end_before_the_first_node_that_needs_values() -> None:
    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0] if x.sum() > 0 else x

    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Chooses(), nn.Flatten())
    graph = captured(layers, torch.randn(2, 4))
    assert list(operations_of(graph, 2)) == graph.nodes[:2]


def test_embedding_with_a_single_row_can_be_timed() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1, 4)

        def forward(self, ids: torch.Tensor) -> Any:
            return self.table(ids) * 2

    graph = captured(Embeds(), torch.zeros(2, 3, dtype=torch.int64))
    operations = distinct(operations_of(graph, 4))
    (lookup,) = of_type(operations, "embedding")
    assert [each.spec.shape for each in lookup.needed] == [(1, 4), (4, 3)]
    assert None not in OpBenchmark(operations, CPU, 0).medians()


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Skips(), torch.randn(2, 3, 16, 16)),
        (InPlace(), torch.randn(2, 4, 8, 8)),
        (Tied(), torch.zeros(2, 5, dtype=torch.int64)),
    ],
    ids=["convolutions", "in place", "tied"],
)
def test_every_operation_can_be_timed_at_other_rows(model: nn.Module, x: torch.Tensor) -> None:
    graph = captured(model, x)
    operations = operations_of(graph, 5)
    assert list(operations) == graph.nodes
    assert None not in OpBenchmark(distinct(operations), CPU, 1 << 16).medians()


def animals() -> list[Any]:
    named = {animal.name: animal for animal in ZOO}
    few = [pytest.param(named[name], id=name) for name in FEW]
    return few + [pytest.param(named[name], id=name, marks=pytest.mark.full) for name in SLOW]


@pytest.mark.parametrize("animal", animals())
def test_operations_of_real_architectures_can_be_timed(animal: ZooModel) -> None:
    with params_on_meta():
        bare = animal.make().eval()
    args, kwargs = animal.call(2, animal.lengths[0])
    graph = capture(bare, args, kwargs)
    operations = operations_of(graph, 2)
    assert list(operations) == graph.nodes
    different = distinct(operations)
    assert len(different) < len(operations)
    times = OpBenchmark(different, CPU, 1 << 20).medians()
    assert all(seconds is None or seconds > 0 for seconds in times)
    untimed = [each.signature for each, t in zip(different, times, strict=True) if t is None]
    assert all("grouped_mm" in signature for signature in untimed), untimed


class Pairs(nn.Module):
    """Takes an even number of rows and returns half as many."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 2 * x.shape[1])


class Branches(nn.Module):
    """Takes another branch for more than four rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[0] > 4 else x - 1


class Sums(nn.Module):
    """Returns one row for all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(4, 4), [1, 2, 4, 8]),
        (
            nn.Sequential(Pairs(), nn.Linear(8, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(0, 1)),
            [2, 4, 8],
        ),
        (Layers(nn.Linear(4, 4), Pairs(), nn.Unflatten(1, (2, 4)), nn.Flatten(0, 1)), [2, 4, 8]),
        (Branches(), [8]),
        (Sums(), [4]),  # its only row has 4 elements, so 4 passes by chance
    ],
)
def test_takes_rows(model: nn.Module, expected: list[int]) -> None:
    graph = captured(model, torch.randn(8, 4))
    assert [rows for rows in (1, 2, 4, 8) if accepts_rows(graph, rows)] == expected
