"""Errors for models that cannot be captured, and for calls that a graph does not accept."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from pipepar.errors import CaptureError, InputError
from pipepar.model.capture.capture import capture
from tests.helpers.models import DependsOnValues, Positions, run, stages_of

torch.set_num_threads(1)


class Branches(nn.Module):
    """Takes another branch for one length."""

    def forward(self, x: torch.Tensor) -> Any:
        return x * 2 if x.shape[1] == 7 else x + 1


def test_error_names_the_users_line_and_the_module_is_unchanged() -> None:
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
        ((torch.ones(2, 3, 4, 1),), {}, "x has 4 dimensions"),
        ((torch.ones(2, 3, 4).double(),), {}, "x has dtype torch.float64, expected torch.float32"),
        ((None,), {}, "x is None, expected a tensor"),
        ((), {"x": torch.ones(2, 3, 4)}, "called with arguments"),
    ],
)
def test_call_unlike_the_example_is_refused(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    graph = capture(Positions().eval(), (torch.randn(2, 3, 4),), {})
    for _ in range(2):  # refused shapes must not get into the cache of accepted ones
        with pytest.raises(InputError, match=message):
            graph.flatten_inputs(args, kwargs)


@pytest.mark.parametrize(("length", "other"), [(7, 8), (8, 7)])
def test_length_that_takes_another_branch_is_refused(length: int, other: int) -> None:
    module = Branches()
    x = torch.randn(2, length)
    graph, plan, stages = stages_of(module, (x,), {}, 1)
    assert torch.equal(run(graph, plan, stages, (x,)), module(x))
    with pytest.raises(InputError, match=r"x.size\(1\)"):
        graph.flatten_inputs((torch.randn(2, other),))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 4).double(), r"layer 0, Linear.*computes in float32, found torch\.float64"),
        (torch.ones(2, 5), r"layer 0, Linear.*takes 4 features, found shape \(2, 5\) before it"),
    ],
)
def test_linear_layer_that_does_not_accept_its_input_is_named(
    x: torch.Tensor, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval(), (x,), {})


def test_hook_before_a_linear_layer_may_convert_its_input() -> None:
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    module, x = nn.Sequential(layer, nn.Linear(4, 4)).eval(), torch.ones(2, 4).double()
    graph, plan, stages = stages_of(module, (x,), {}, 2)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def test_hook_before_a_layer_may_change_the_number_of_values() -> None:
    bilinear = nn.Bilinear(4, 4, 4)
    bilinear.register_forward_pre_hook(lambda _, args: (args[0], args[0] * 2))
    module, x = nn.Sequential(nn.Linear(4, 4), bilinear).eval(), torch.ones(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 2)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def test_array_in_the_example_is_refused() -> None:
    with pytest.raises(CaptureError, match="x of the example is a ndarray"):
        capture(Positions(), (), {"x": torch.ones(2, 3, 4).numpy()})


def test_output_of_an_unsupported_class_is_named() -> None:
    class Unsupported:
        def __init__(self, y: torch.Tensor) -> None:
            self.y = y

    class Returns(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return Unsupported(x + 1)

    with pytest.raises(CaptureError, match=r"Unsupported, expected .*return its tensors"):
        capture(Returns(), (torch.ones(2),), {})


def test_model_that_counts_its_calls_is_refused() -> None:
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


class Repeats(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        for _ in range(int(x.sum().item())):  # count from values
            x = x + 1
        return x


class Selects(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        positive = x[x > 0]
        if len(positive) == 0:  # size from values
            return x
        return x / positive.sum()


class UsesNumpy(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.from_numpy(np.sin(x.numpy()))  # NumPy


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        raise ValueError("no such thing")  # the model's own error


class Wraps(nn.Module):
    """The user's model around a model of a library."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mixtral("eager").model

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.inner(input_ids).last_hidden_state  # into the library


def mixtral(experts: str, use_cache: bool = False) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "use_cache": use_cache,
        "experts_implementation": experts,
    }
    return hf.MixtralForCausalLM(hf.MixtralConfig(**settings))


@pytest.mark.parametrize(
    ("module", "line", "reason", "remedy"),
    [
        (Repeats(), "# count from values", "depends on the values", "torch.where"),
        (Selects(), "# size from values", "depends on the values", "a mask"),
        (UsesNumpy(), "# NumPy", "takes tensors out of torch", "torch's own"),
        (Fails(), "# the model's own error", "ValueError: no such thing", "check that the model"),
    ],
)
def test_error_has_line_reason_and_remedy(
    module: nn.Module, line: str, reason: str, remedy: str
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(module.eval(), (torch.ones(2, 4),), {})
    message = str(caught.value)
    assert message.startswith(f"{type(module).__name__} cannot be turned into a graph: ")
    assert f"{Path(__file__).name}:" in message
    for part in (line, reason, remedy, "nn.Sequential", "pipepar.Pipeline(layers=[...])"):
        assert part in message


def test_number_from_values_that_is_only_a_factor_is_captured() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> Any:
            scale = x.max().item()
            for layer in self.layers:
                x = layer(x)
            return x * scale

    module, x = Scales().eval(), torch.randn(3, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 3)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))


def test_error_for_eager_experts_has_a_remedy() -> None:
    ids = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(CaptureError) as caught:
        capture(mixtral("eager").eval(), (ids,), {})
    assert 'experts_implementation="grouped_mm"' in str(caught.value)
    assert "modeling_mixtral.py:" in str(caught.value)
    assert capture(mixtral("grouped_mm").eval(), (ids,), {}).varies == "batch and length"


def test_error_inside_a_library_names_the_users_line_too() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Wraps().eval(), (torch.ones(2, 5, dtype=torch.long),), {})
    assert "modeling_mixtral.py:" in str(caught.value)
    assert "# into the library" in str(caught.value)


def test_error_for_a_cache_in_the_output_has_a_remedy() -> None:
    with pytest.raises(CaptureError, match=r"DynamicCache.*set model.config.use_cache = False"):
        capture(mixtral("grouped_mm", True).eval(), (torch.ones(2, 5, dtype=torch.long),), {})


def test_missing_argument_is_named() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
            return x * mask

    with pytest.raises(InputError, match=r"takes \(x: .*missing a required argument: 'mask'"):
        capture(Two(), (torch.ones(2),), {})
