"""Graphs: dynamic sizes, inputs, weights, equal digests in every process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.errors import InputError
from pipepar.model.capture.capture import capture
from pipepar.planner.plan_offline import make_plan
from tests.helpers.models import DependsOnValues, Dicts, Mlp, Sized, Tied, run, stages_of

torch.set_num_threads(1)


class Regions(nn.Module):
    """Switches autocast and gradients, as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        h = self.layers[0](x)
        with torch.autocast("cpu", enabled=False):
            h = h.float().sin()
            with torch.enable_grad():
                h = self.layers[1](h)
        with torch.no_grad():
            return self.layers[2](h)


def sizes(module: nn.Module, *args: Any) -> Any:
    graph = capture(module.eval(), args, {})
    return [
        [size if isinstance(size, int) else "dynamic" for size in leaf.sizes or ()]
        for leaf in graph.signature.tensors
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 16), ["dynamic", 16]),
        ((1, 16), ["dynamic", 16]),  # a batch of 1 may vary too
        ((16, 16), ["dynamic", 16]),  # batch == width
        ((1, 1, 16), ["dynamic", "dynamic", 16]),
        ((5, 5, 16), ["dynamic", "dynamic", 16]),  # batch == length
    ],
)
def test_batch_and_length_are_dynamic(shape: tuple[int, ...], expected: Any) -> None:
    assert sizes(Mlp(), torch.randn(shape)) == [expected]


def test_batch_and_length_of_equal_size_are_independent() -> None:
    class Masked(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
            return ids.float()[..., None] * mask[..., None]

    graph = capture(Masked(), (torch.ones(3, 3, dtype=torch.long), torch.ones(3, 3)), {})
    graph.flatten_inputs((torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9)))
    with pytest.raises(InputError, match=r"mask.size\(1\) is 8, expected ids.size\(1\) = 9"):
        graph.flatten_inputs((torch.ones(2, 9, dtype=torch.long), torch.ones(2, 8)))


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_is_dimension_1_in_one_input_and_0_in_another(batch: int) -> None:
    class Transposed(nn.Module):
        def forward(
            self, x: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:  # x: [S, B, 4], mask: [B, S]
            return x * mask.t()[..., None]

    module, call = Transposed(), (torch.randn(5, batch, 4), torch.ones(batch, 5))
    graph, plan, stages = stages_of(module, call, {}, 1)
    x, mask = torch.randn(7, 3, 4), torch.rand(3, 7)
    assert torch.equal(run(graph, plan, stages, (x, mask)), module(x, mask))


def test_batch_is_dynamic_if_the_model_fixes_the_length() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> Any:  # [B, 6, 3]
            return self.mix(x.transpose(1, 2))

    assert sizes(Fixed(), torch.randn(1, 6, 3)) == [["dynamic", 6, 3]]


def test_module_is_not_modified() -> None:
    module = Tied().eval()
    before = dict(module.named_parameters(remove_duplicate=False))
    capture(module, (torch.ones(2, 3, dtype=torch.long),), {})
    after = dict(module.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_graph_has_no_fake_or_meta_tensor_and_no_region() -> None:
    graph, plan, stages = stages_of(Regions().eval(), (torch.randn(2, 4),), {}, 2)
    targets = " ".join(str(node.target) for node in graph.module.graph.nodes)
    assert "wrap_with" not in targets
    assert "assert" not in targets
    assert "meta" not in str(graph.module.graph)
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), Regions.forward(_module_of(stages), x))


def _module_of(stages: list[Stage]) -> Any:
    """Return a module with the weights of the stages."""
    module = Regions()
    state = {k: v for s in stages for k, v in s._module.state_dict().items() if "layers" in k}
    module.load_state_dict(state)
    return module


def test_weights_have_the_models_own_names_and_ties() -> None:
    graph = capture(Tied().eval(), (torch.ones(2, 3, dtype=torch.long),), {})
    names = {name for spec in graph.weights.values() for name in (spec.name, *spec.aliases)}
    assert names == {"embed.weight", "head.weight"} | {
        f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    }
    assert len({spec.name for spec in graph.weights.values()}) == 7


def digests() -> list[str]:
    """Return digests and node names of three kinds of models; equal in every process."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = [
        (Tied(), (torch.ones(2, 3, dtype=torch.long),), {}),
        (Dicts(), ({"x": torch.ones(2, 8), "offset": torch.ones(2)},), {"scale": 2.0}),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (torch.ones(2, 4),), {}),
    ]
    graphs = [capture(module.eval(), args, kwargs) for module, args, kwargs in calls]
    return [
        f"{graph.digest} {make_plan(graph, 2).digest} {[node.name for node in graph.nodes]}"
        for graph in graphs
    ]


def test_two_processes_capture_the_same_graph() -> None:
    """This process has captured other models before, and the other one has another hash seed."""
    code = f"from {__name__} import digests; print(*digests(), sep='\\n')"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.splitlines() == digests()


def test_different_models_have_different_digests() -> None:
    x = torch.randn(2, 16)
    digests = {
        capture(m.eval(), (x,), {}).digest for m in (Mlp(), nn.Sequential(nn.Linear(16, 16)))
    }
    assert len(digests) == 2


def test_python_values_are_part_of_the_graph() -> None:
    x = {"x": torch.ones(2, 8), "offset": torch.ones(2)}
    graph = capture(Dicts().eval(), (x, None), {"scale": 0.5, "flag": True})
    assert len(graph.inputs) == 2
    assert len(set(graph.outputs)) == len(graph.outputs) == 2  # the model returns one of them twice
    with pytest.raises(InputError, match=r"scale is 0.25, expected 0.5"):
        graph.flatten_inputs((x, None), {"scale": 0.25, "flag": True})
    with pytest.raises(InputError, match=r"flag is 1, expected True"):
        graph.flatten_inputs((x, None), {"scale": 0.5, "flag": 1})


def test_inputs_without_a_parameter_name_get_one() -> None:
    class Takes(nn.Module):
        def forward(self, x: torch.Tensor, *more: torch.Tensor, **named: torch.Tensor) -> Any:
            return x + more[0] * more[1] + named["2d"]

    one = torch.ones(2)
    graph = capture(Takes(), (one, one, one), {"2d": one})
    assert graph.inputs == ("x", "arg1", "arg2", "input_2d")


def test_kwargs_are_accepted_in_any_order() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
            return a - b

    graph = capture(Two(), (), {"b": torch.ones(2), "a": torch.zeros(2)})
    one, two = torch.randn(3), torch.randn(3)
    assert graph.inputs == ("b", "a")
    assert graph.flatten_inputs((), {"a": one, "b": two})[0] is two


def test_parameters_on_meta_give_the_same_graph() -> None:
    with torch.device("meta"):
        module = Sized().eval()
    graph = capture(module, (torch.randn(2, 3, 8),), {})
    assert graph.digest == capture(Sized().eval(), (torch.randn(4, 5, 8),), {}).digest


def test_sequence_is_not_traced() -> None:
    module = nn.Sequential(nn.Linear(4, 4), DependsOnValues(), nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 3)
    assert [node.op for node in graph.nodes] == ["call_module"] * 3
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))
