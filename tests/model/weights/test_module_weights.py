"""The weights of an existing module: shared, counted once, and checked by shape."""

import pytest
import torch
from torch import nn

from pipepar.errors import WeightsError
from pipepar.model.module_tensors import named_weights, non_persistent_buffers
from pipepar.model.weights.weight_source import ModuleWeights, WeightSpec
from tests.helpers.models import Tied

torch.set_num_threads(1)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def spec(name: str) -> WeightSpec:
    return WeightSpec(name, (), (2, 3), torch.float32)


def test_a_tied_tensor_is_counted_once() -> None:
    module = Tied()  # an embedding of 40 x 8, tied to the head, and three layers
    assert ModuleWeights(module).held(CPU) == 4 * (40 * 8 + 3 * (8 * 8 + 8))


def test_buffers_are_counted_and_only_on_their_device() -> None:
    module = nn.BatchNorm1d(5)
    assert ModuleWeights(module).held(CPU) == 4 * 4 * 5 + 8  # four buffers of 5 and a counter
    assert ModuleWeights(module).held(GPU) == 0
    assert ModuleWeights(module.to("meta")).held(CPU) == 0


class Buffers(nn.Module):
    """A module with buffers of these names."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_non_persistent_buffers_have_all_their_names() -> None:
    part = nn.Linear(2, 2, bias=False)
    part.register_buffer("temporary", torch.zeros(2), persistent=False)
    part.register_buffer("saved", torch.zeros(2))
    module = nn.ModuleDict({"one": part, "again": part})
    assert set(non_persistent_buffers(module)) == {"one.temporary", "again.temporary"}
    assert set(named_weights(module)) == {
        *("one.weight", "one.saved", "again.weight", "again.saved")
    }


def test_different_modules_have_different_fingerprints() -> None:
    long = torch.arange(10_000.0)
    middle = long.clone()
    middle[5_000] = -1.0
    modules = [
        Buffers(a=long),
        Buffers(a=middle),
        Buffers(b=long),
        Buffers(a=long[None]),
        Buffers(a=long.view(torch.int32)),
    ]
    prints = [ModuleWeights(module).fingerprint() for module in modules]
    assert len(set(prints)) == len(prints)
    assert ModuleWeights(Buffers(a=long.clone())).fingerprint() == prints[0]


def test_a_modules_tensors_are_shared() -> None:
    module = nn.Linear(3, 2)
    ((_, read),) = ModuleWeights(module).read([spec("weight")])
    assert read.data_ptr() == module.weight.data_ptr()
    assert not read.requires_grad


@pytest.mark.parametrize(
    ("module", "requested", "message"),
    [
        (nn.Linear(3, 2), spec("wait"), "similar names: weight"),
        (nn.Linear(3, 3), spec("weight"), r"\(3, 3\) torch.float32, expected \(2, 3\)"),
        (nn.Linear(3, 2, device="meta"), spec("weight"), "meta device"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(
    module: nn.Module, requested: WeightSpec, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        ModuleWeights(module).check([requested])
