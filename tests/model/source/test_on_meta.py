"""Models built without memory for their parameters: the same model, or a clear refusal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.model.source.on_meta import build_on_meta, params_on_meta
from pipepar.model.source.open_source import from_module


class Named(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(4, 4))
        self.first, self.second = weight, weight


def test_a_parameter_under_two_names_stays_one() -> None:
    with params_on_meta():
        named = Named()
    assert named.first is named.second
    assert named.first.is_meta


@pytest.mark.parametrize(
    "move", [lambda m: m.to("cpu"), lambda m: m.cpu(), lambda m: m.cuda(), lambda m: m.to("cuda:1")]
)
def test_a_factory_may_move_its_model(move: Callable[[nn.Module], nn.Module]) -> None:
    made = build_on_meta(lambda: move(nn.Linear(2, 2)), "f", alone=True)
    assert all(parameter.is_meta for parameter in made.parameters())


def test_a_factory_may_cast_and_lay_out_its_model() -> None:
    made = build_on_meta(
        lambda: nn.Conv2d(3, 4, 3).to("cpu", torch.bfloat16, memory_format=torch.channels_last),  # type: ignore[call-overload]
        "f",
        alone=True,
    )
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    (weight, _) = made.parameters()
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_torch_is_left_as_it_was() -> None:
    methods = [nn.Module.register_parameter, nn.Module.to, nn.Module.cpu, torch.manual_seed]
    with pytest.raises(KeyError), params_on_meta():
        raise KeyError
    build_on_meta(Fixed, "f", alone=True)
    assert [nn.Module.register_parameter, nn.Module.to, nn.Module.cpu, torch.manual_seed] == methods


def test_a_factory_that_reads_its_parameters() -> None:
    def make() -> nn.Module:
        layer = nn.Linear(2, 2)
        if layer.weight.sum().item() > 0:
            layer.bias = None  # type: ignore[assignment]
        return layer

    with pytest.raises(InputError, match="f failed while its parameters had no values"):
        build_on_meta(make, "f", alone=True)


class Noise(nn.Module):
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("noise", torch.randn(4), persistent=persistent)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("table", torch.arange(-1.0, 3.0) ** 0.5, persistent=False)  # NaN first


class Derived(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("twice", self.weight.detach() * 2, persistent=False)


def seeded_behind_a_name() -> nn.Module:
    seed = torch.random.manual_seed
    seed(0)
    layer = nn.Linear(4, 4)
    layer.register_buffer("perm", torch.randperm(16), persistent=False)
    return layer


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Noise(persistent=False), "noise"),
        (seeded_behind_a_name, "perm"),
        (Derived, "twice"),
    ],
)
def test_a_buffer_that_would_come_out_wrong(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(InputError, match=f"the buffer {name} of f is random or computed from a"):
        build_on_meta(make, "f", alone=True)
    build_on_meta(make, "f", alone=False)  # rank 0 sends it


@pytest.mark.parametrize("make", [lambda: Noise(persistent=True), Fixed])
def test_buffers_that_are_right(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    made: Any = build_on_meta(make, "f", alone=True)
    assert not any(buffer.is_meta for buffer in made.buffers())
    torch.set_rng_state(state)


def test_a_lazy_module_is_refused() -> None:
    with pytest.raises(InputError, match="run a lazy layer once"):
        from_module(nn.Sequential(nn.LazyLinear(3)))
