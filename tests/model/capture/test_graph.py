"""Any module becomes one graph, the same one in every process, and stays as it was."""

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
    """Switches autocast and gradients, as rotary embeddings do."""

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
        [size if isinstance(size, int) else "free" for size in leaf.sizes or ()]
        for leaf in graph.signature.tensors
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 16), ["free", 16]),
        ((1, 16), ["free", 16]),  # a batch of 1 is still a batch
        ((16, 16), ["free", 16]),  # as many rows as columns
        ((1, 1, 16), ["free", "free", 16]),
        ((5, 5, 16), ["free", "free", 16]),  # batch == length
    ],
)
def test_batch_and_length_stay_free(shape: tuple[int, ...], expected: Any) -> None:
    assert sizes(Mlp(), torch.randn(shape)) == [expected]


def test_batch_and_length_are_not_tied_by_an_accident() -> None:
    class Masked(nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
            return ids.float()[..., None] * mask[..., None]

    graph = capture(Masked(), (torch.ones(3, 3, dtype=torch.long), torch.ones(3, 3)), {})
    graph.flatten_inputs((torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9)))
    with pytest.raises(InputError, match=r"mask.size\(1\) is 8, expected ids.size\(1\) = 9"):
        graph.flatten_inputs((torch.ones(2, 9, dtype=torch.long), torch.ones(2, 8)))


def test_two_layouts_of_the_batch() -> None:
    class Transposed(nn.Module):
        def forward(
            self, x: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:  # x: [S, B, 4], mask: [B, S]
            return x * mask.t()[..., None]

    module, call = Transposed(), (torch.randn(5, 2, 4), torch.ones(2, 5))
    graph, plan, stages = stages_of(module, call, {}, 1)
    x, mask = torch.randn(7, 3, 4), torch.rand(3, 7)
    assert torch.equal(run(graph, plan, stages, (x, mask)), module(x, mask))


def test_a_model_of_fixed_length_keeps_its_batch_free() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> Any:  # [B, 6, 3]
            return self.mix(x.transpose(1, 2))

    assert sizes(Fixed(), torch.randn(1, 6, 3)) == [["free", 6, 3]]


def test_the_module_is_left_as_it_was() -> None:
    module = Tied().eval()
    before = dict(module.named_parameters(remove_duplicate=False))
    capture(module, (torch.ones(2, 3, dtype=torch.long),), {})
    after = dict(module.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_no_fake_or_meta_tensor_and_no_region_remains() -> None:
    graph, plan, stages = stages_of(Regions().eval(), (torch.randn(2, 4),), {}, 2)
    targets = " ".join(str(node.target) for node in graph.module.graph.nodes)
    assert "wrap_with" not in targets
    assert "assert" not in targets
    assert "meta" not in str(graph.module.graph)
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), Regions.forward(_weights(stages), x))


def _weights(stages: list[Stage]) -> Any:
    """The module again, from what the stages hold."""
    module = Regions()
    state = {k: v for s in stages for k, v in s._module.state_dict().items() if "layers" in k}
    module.load_state_dict(state)
    return module


def test_weights_keep_the_models_own_names_and_ties() -> None:
    graph = capture(Tied().eval(), (torch.ones(2, 3, dtype=torch.long),), {})
    names = {name for spec in graph.weights.values() for name in (spec.name, *spec.aliases)}
    assert names == {"embed.weight", "head.weight"} | {
        f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")
    }
    assert len({spec.name for spec in graph.weights.values()}) == 7


def digests() -> list[str]:
    """What processes have to agree on, for models of three kinds."""
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
    """This one, which has captured others before, and one that hashes words otherwise."""
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


def test_another_model_has_another_digest() -> None:
    x = torch.randn(2, 16)
    digests = {
        capture(m.eval(), (x,), {}).digest for m in (Mlp(), nn.Sequential(nn.Linear(16, 16)))
    }
    assert len(digests) == 2


def test_python_values_are_part_of_the_graph() -> None:
    x = {"x": torch.ones(2, 8), "offset": torch.ones(2)}
    graph = capture(Dicts().eval(), (x, None), {"scale": 0.5, "flag": True})
    assert len(graph.inputs) == 2
    assert len(set(graph.outputs)) == len(graph.outputs) == 2  # one of them is there twice
    with pytest.raises(InputError, match=r"scale is 0.25, expected 0.5"):
        graph.flatten_inputs((x, None), {"scale": 0.25, "flag": True})
    with pytest.raises(InputError, match=r"flag is 1, expected True"):
        graph.flatten_inputs((x, None), {"scale": 0.5, "flag": 1})


def test_inputs_that_forward_does_not_name_have_names_too() -> None:
    class Takes(nn.Module):
        def forward(self, x: torch.Tensor, *more: torch.Tensor, **given: torch.Tensor) -> Any:
            return x + more[0] * more[1] + given["2d"]

    one = torch.ones(2)
    graph = capture(Takes(), (one, one, one), {"2d": one})
    assert graph.inputs == ("x", "arg1", "arg2", "input_2d")


def test_kwargs_may_come_in_any_order() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
            return a - b

    graph = capture(Two(), (), {"b": torch.ones(2), "a": torch.zeros(2)})
    one, two = torch.randn(3), torch.randn(3)
    assert graph.inputs == ("b", "a")
    assert graph.flatten_inputs((), {"a": one, "b": two})[0] is two


def test_parameters_on_meta_are_enough() -> None:
    with torch.device("meta"):
        module = Sized().eval()
    graph = capture(module, (torch.randn(2, 3, 8),), {})
    assert graph.digest == capture(Sized().eval(), (torch.randn(4, 5, 8),), {}).digest


def test_a_sequence_is_not_traced_and_knows_its_writes() -> None:
    module = nn.Sequential(nn.Linear(4, 4), DependsOnValues(), nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4)
    graph, plan, stages = stages_of(module, (x,), {}, 3)
    assert [node.op for node in graph.nodes] == ["call_module"] * 3
    with torch.no_grad():
        assert torch.equal(run(graph, plan, stages, (x,)), module(x))
