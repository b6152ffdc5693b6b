"""A graph that accepts fewer sizes than its model reports which and why."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from tests.helpers.models import Mlp, Positions, Skips, run, stages_of

torch.set_num_threads(1)


class Loops(nn.Module):
    """One step for each position, as in a recurrent layer written in Python."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:  # [B, S], [B, S]
        state = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):  # the loop
            state = torch.tanh(state + x[:, step]) * mask[:, step]
        return state


class LoopsOverLongInputs(Loops):
    """Needs a length of 16 or more."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
        mean = nn.functional.avg_pool1d(x[:, None], 16, 1).mean(-1)
        return super().forward(x - mean, mask)


@functools.lru_cache
def positions(length: int) -> list[float]:
    return [float(position) for position in range(length)]


class CachesBySize(nn.Module):
    """Uses a size as a key, which a symbolic size cannot be."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> Any:
        return x * sum(positions(x.shape[self.dim]))  # the cache


class ByRow(nn.Module):
    """Computes row by row."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.stack([torch.softmax(row, -1) for row in x])


class FixedBatch(nn.Module):
    """Mixes 3 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.mix(x.t()).t()


def graph_of(module: nn.Module, *args: Any) -> Graph:
    return capture(module.eval(), args, {})


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (Mlp(), (2, 16), "batch"),
        (Mlp(), (2, 5, 16), "batch and length"),
        (Skips(), (2, 3, 8, 8), "batch"),  # dimension 1 of a picture is the channels
        (Positions(), (2, 5, 4), "batch and length"),
        (nn.Sequential(nn.Linear(4, 4)), (2, 4), "all sizes"),
    ],
)
def test_size_fixed_by_the_model_is_not_reported(
    module: nn.Module, shape: tuple[int, ...], expected: str
) -> None:
    graph = graph_of(module, torch.randn(shape))
    assert graph.varies == expected
    assert graph.limitation("Model") is None


def test_length_fixed_by_tracing_is_reported_with_the_line() -> None:
    graph = graph_of(Loops(), torch.randn(2, 5), torch.ones(2, 5))
    message = graph.limitation("Loops")
    assert message is not None
    assert "Loops could only be captured with a varying batch: x must be [batch, 5], " in message
    assert f"{Path(__file__).name}:" in message
    assert "# the loop" in message
    with pytest.raises(InputError, match=r"x.size\(1\) is 6, expected 5"):
        graph.flatten_inputs((torch.randn(2, 6), torch.ones(2, 6)))


def test_length_fixed_by_tracing_is_reported_if_the_model_has_a_minimum_length() -> None:
    graph = graph_of(LoopsOverLongInputs(), torch.randn(2, 20), torch.ones(2, 20))
    assert "x must be [batch, 20]" in (graph.limitation("LoopsOverLongInputs") or "")


@pytest.mark.parametrize(
    ("dim", "varies", "shape"), [(1, "batch", "[batch, 5]"), (0, "nothing", "[3, 5]")]
)
def test_size_that_cannot_be_symbolic_is_fixed(dim: int, varies: str, shape: str) -> None:
    module, x = CachesBySize(dim), torch.randn(3, 5)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    assert torch.equal(run(graph, plan, stages, (x,)), module(x))
    message = graph.limitation("CachesBySize")
    assert graph.varies == varies
    assert message is not None
    for part in (f"x must be {shape}", "unhashable type", "# the cache"):
        assert part in message


def test_batch_fixed_by_tracing_is_reported() -> None:
    module = ByRow()
    x = torch.randn(3, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    assert torch.equal(run(graph, plan, stages, (x,)), module(x))
    message = graph.limitation("ByRow")
    assert graph.varies == "length"
    assert message is not None
    assert "with a varying length: x must be [3, length]" in message


def test_batch_fixed_by_the_model_is_reported_too() -> None:
    graph = graph_of(FixedBatch(), torch.randn(3, 5))
    message = graph.limitation("FixedBatch")
    assert graph.varies == "length"
    assert message is not None
    assert "x must be [3, length]" in message
    assert "the model itself takes no other" in message
    with pytest.raises(InputError, match=r"x.size\(0\) is 4, expected 3"):
        graph.flatten_inputs((torch.randn(4, 5),))
