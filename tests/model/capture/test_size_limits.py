"""A graph that holds for fewer sizes than its model says so, and why."""

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
    """Takes one step for each position, as a recurrent layer in Python does."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:  # [B, S], [B, S]
        state = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):  # the loop
            state = torch.tanh(state + x[:, step]) * mask[:, step]
        return state


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
        (Skips(), (2, 3, 8, 8), "batch"),  # a picture's channels are no length
        (Positions(), (2, 5, 4), "batch and length"),
        (nn.Sequential(nn.Linear(4, 4)), (2, 4), "all sizes"),
    ],
)
def test_what_the_model_itself_fixes_is_no_limitation(
    module: nn.Module, shape: tuple[int, ...], expected: str
) -> None:
    graph = graph_of(module, torch.randn(shape))
    assert graph.varies == expected
    assert graph.limitation("Model") is None


def test_a_length_that_tracing_fixed_is_told_with_the_line() -> None:
    graph = graph_of(Loops(), torch.randn(2, 5), torch.ones(2, 5))
    told = graph.limitation("Loops")
    assert told is not None
    assert "Loops could only be captured with a varying batch: x must be [batch, 5], " in told
    assert f"{Path(__file__).name}:" in told
    assert "# the loop" in told
    with pytest.raises(InputError, match=r"x.size\(1\) is 6, expected 5"):
        graph.flatten_inputs((torch.randn(2, 6), torch.ones(2, 6)))


def test_a_batch_that_tracing_fixed_is_told() -> None:
    module = ByRow()
    x = torch.randn(3, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    assert torch.equal(run(graph, plan, stages, (x,)), module(x))
    told = graph.limitation("ByRow")
    assert graph.varies == "length"
    assert told is not None
    assert "with a varying length: x must be [3, length]" in told


def test_a_batch_that_the_model_fixes_is_told_too() -> None:
    graph = graph_of(FixedBatch(), torch.randn(3, 5))
    told = graph.limitation("FixedBatch")
    assert graph.varies == "length"
    assert "x must be [3, length]" in (told or "")
    assert told is not None
    assert "the model itself takes no other" in told
    with pytest.raises(InputError, match=r"x.size\(0\) is 4, expected 3"):
        graph.flatten_inputs((torch.randn(4, 5),))
