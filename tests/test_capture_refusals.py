"""What cannot be captured, and calls that do not fit what was: an error that says so."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import CaptureError, InputError
from pipepar.model.capture import capture
from tests.models import DependsOnValues, Positions, run, stages_of

torch.set_num_threads(1)


class Branches(nn.Module):
    """Takes another path for one length."""

    def forward(self, x: torch.Tensor) -> Any:
        return x * 2 if x.shape[1] == 7 else x + 1


def test_a_failure_names_the_users_line_and_leaves_the_module() -> None:
    module = DependsOnValues().eval()
    before = (module.layer.weight, module.count)
    with pytest.raises(CaptureError) as caught:
        capture(module, (torch.randn(2, 4),), {})
    assert "if x.sum() > 0:  # the user's line" in str(caught.value)
    assert f"{Path(inspect.getfile(DependsOnValues)).name}:" in str(caught.value)
    assert "nn.Sequential" in str(caught.value)
    assert module.layer.weight is before[0]
    assert module.count is before[1]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.ones(2, 17, 4),), {}, r"found x.size\(1\) = 17, expected x.size\(1\) <= 16"),
        ((torch.ones(2, 3, 5),), {}, r"x.size\(2\) is 5, expected 4"),
        ((torch.ones(2, 4),), {}, "x has 2 dimensions"),
        ((torch.ones(2, 3, 4).double(),), {}, "x has dtype torch.float64, expected torch.float32"),
        ((None,), {}, "x is None, expected a tensor"),
        ((), {"x": torch.ones(2, 3, 4)}, "called with arguments"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    graph = capture(Positions().eval(), (torch.randn(2, 3, 4),), {})
    with pytest.raises(InputError, match=message):
        graph.flatten_inputs(args, kwargs)


@pytest.mark.parametrize(("length", "other"), [(7, 8), (8, 7)])
def test_a_length_that_takes_another_path_is_refused(length: int, other: int) -> None:
    module = Branches()
    x = torch.randn(2, length)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    assert torch.equal(run(graph, plan, stages, (x,)), module(x))
    with pytest.raises(InputError, match=r"x.size\(1\)"):
        graph.flatten_inputs((torch.randn(2, other),))


def test_an_array_is_no_tensor() -> None:
    with pytest.raises(CaptureError, match="x of the example is a ndarray"):
        capture(Positions(), (), {"x": torch.ones(2, 3, 4).numpy()})


def test_an_output_of_an_unknown_class_is_named() -> None:
    @dataclass
    class Strange:
        y: torch.Tensor

    class Gives(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return Strange(x + 1)

    with pytest.raises(CaptureError, match=r"Strange.*register_dataclass"):
        capture(Gives(), (torch.ones(2),), {})


def test_a_model_that_counts_its_calls_is_refused() -> None:
    class Counts(nn.Module):
        calls: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> Any:
            self.calls.add_(1)
            return x + self.calls

    with pytest.raises(CaptureError, match="writes into calls"):
        capture(Counts(), (torch.ones(2),), {})
