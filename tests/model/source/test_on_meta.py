"""Models that are built without memory for their parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.model.source.on_meta import build_on_meta, params_on_meta
from pipepar.model.source.open_source import from_module


class Shared(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(4, 4))
        self.first, self.second = weight, weight


def test_a_parameter_under_two_names_stays_one() -> None:
    with params_on_meta():
        shared = Shared()
    assert shared.first is shared.second
    assert shared.first.is_meta


@pytest.mark.parametrize(
    "move", [lambda m: m.to("cpu"), lambda m: m.cpu(), lambda m: m.cuda(), lambda m: m.to("cuda:1")]
)
def test_a_factory_may_move_its_model(move: Callable[[nn.Module], nn.Module]) -> None:
    made = build_on_meta(lambda: move(nn.Linear(2, 2)), "f", check_buffers=True)
    assert all(parameter.is_meta for parameter in made.parameters())


def test_a_factory_may_cast_and_lay_out_its_model() -> None:
    made = build_on_meta(
        lambda: nn.Conv2d(3, 4, 3).to("cpu", torch.bfloat16, memory_format=torch.channels_last),  # type: ignore[call-overload]
        "f",
        check_buffers=True,
    )
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    (weight, _) = made.parameters()
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_torch_is_restored() -> None:
    methods = [nn.Module.register_parameter, nn.Module.to, nn.Module.cpu, torch.manual_seed]
    with pytest.raises(KeyError), params_on_meta():
        raise KeyError
    build_on_meta(Fixed, "f", check_buffers=True)
    assert [nn.Module.register_parameter, nn.Module.to, nn.Module.cpu, torch.manual_seed] == methods


def test_a_factory_that_reads_its_parameters_is_refused() -> None:
    def make() -> nn.Module:
        layer = nn.Linear(2, 2)
        if layer.weight.sum().item() > 0:
            layer.bias = None  # type: ignore[assignment]
        return layer

    with pytest.raises(InputError, match="f failed while its parameters had no values"):
        build_on_meta(make, "f", check_buffers=True)


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
        roots = torch.arange(-1.0, 3.0) ** 0.5  # the first is NaN
        self.register_buffer("roots", roots, persistent=False)


class Derived(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("twice", self.weight.detach() * 2, persistent=False)


def seeded_by_another_name() -> nn.Module:
    seed = torch.random.manual_seed
    seed(0)
    layer = nn.Linear(4, 4)
    layer.register_buffer("perm", torch.randperm(16), persistent=False)
    return layer


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Noise(persistent=False), "noise"),
        (seeded_by_another_name, "perm"),
        (Derived, "twice"),
    ],
)
def test_a_random_or_computed_buffer_is_refused(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(InputError, match=f"the buffer {name} of f is random or computed from a"):
        build_on_meta(make, "f", check_buffers=True)
    build_on_meta(make, "f", check_buffers=False)


@pytest.mark.parametrize("make", [lambda: Noise(persistent=True), Fixed])
def test_reproducible_buffers_are_accepted(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    made: Any = build_on_meta(make, "f", check_buffers=True)
    assert not any(buffer.is_meta for buffer in made.buffers())


def test_a_lazy_module_is_refused() -> None:
    with pytest.raises(InputError, match="run a lazy layer once"):
        from_module(nn.Sequential(nn.LazyLinear(3)))
