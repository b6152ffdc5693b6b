"""Real architectures, cut into 1 to 4 stages, equal the unsplit model bit for bit."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.on_meta import params_on_meta
from pipepar.model.weights.weight_source import ModuleWeights
from pipepar.plan.plan import Plan
from pipepar.planner.plan_offline import make_plan
from tests.helpers.models import run
from tests.helpers.zoo import ZOO, Call, ZooModel

pytestmark = pytest.mark.long(60)

torch.set_num_threads(1)

STAGES = (1, 2, 3, 4)
EXAMPLE = 2
BATCHES = (1, 3)


@dataclass(frozen=True)
class Captured:
    """A model of the zoo and the objects that its tests share."""

    animal: ZooModel
    module: nn.Module
    graph: Graph
    plans: dict[int, Plan]
    expected: list[tuple[Call, Any]]
    """Calls, and the unsplit model's result of each."""

    def stages(self, count: int) -> list[Stage]:
        weights = ModuleWeights(self.module)
        return [Stage.load(self.graph, self.plans[count], i, weights) for i in range(count)]


def identify(animal: ZooModel) -> str:
    return f"{animal.name}, free: {animal.varies}{', a fallback' * animal.falls_back}"


def animals(*later: str) -> list[Any]:
    """Return all models as parameters; full-size ones and `later` run in `make test-all` only."""
    full = pytest.mark.full
    return [
        pytest.param(
            each, marks=[full] if each.full or each.name in later else [], id=identify(each)
        )
        for each in ZOO
    ]


@pytest.fixture(scope="module", params=animals())
def captured(request: pytest.FixtureRequest) -> Iterator[Captured]:
    animal: ZooModel = request.param
    torch.manual_seed(0)
    module = animal.make().eval()
    with params_on_meta():  # as on a rank; buffers that no checkpoint holds still have values
        bare = animal.make().eval()
    args, kwargs = animal.call(EXAMPLE, animal.lengths[0])
    graph = capture(bare, args, kwargs)
    plans = {count: make_plan(graph, count) for count in STAGES}
    yield Captured(animal, module, graph, plans, list(computed(animal, module)))
    gc.collect()  # a graph contains reference cycles


def computed(animal: ZooModel, module: nn.Module) -> Iterator[tuple[Call, Any]]:
    for batch in BATCHES if animal.varies != "nothing" else (EXAMPLE,):
        for length in animal.lengths:
            args, kwargs = animal.call(batch, length)
            with torch.no_grad():
                yield (args, kwargs), module(*args, **kwargs)


@pytest.mark.parametrize("count", STAGES, ids="{} stages".format)
def test_stages_equal_the_unsplit_model(captured: Captured, count: int) -> None:
    stages = captured.stages(count)
    for (args, kwargs), expected in captured.expected:
        found = run(captured.graph, captured.plans[count], stages, args, kwargs)
        assert_same(found, expected)


def assert_same(found: Any, expected: Any) -> None:
    leaves, structure = pytree.tree_flatten(found)
    wanted, nesting = pytree.tree_flatten(expected)
    assert type(found) is type(expected)
    assert structure == nesting  # down to the classes and the names of the fields
    for leaf, other in zip(leaves, wanted, strict=True):
        if isinstance(other, torch.Tensor):
            assert leaf.dtype == other.dtype
            assert torch.equal(leaf, other)
        else:
            assert leaf == other


# Tracing these models takes longest, and similar models are traced again.
@pytest.mark.parametrize(
    "captured",
    animals("distilbert", "gpt2", "llama-bf16", "mamba", "funnel"),
    indirect=True,
)
def test_plans_do_not_depend_on_the_values_of_weights(captured: Captured) -> None:
    """A rank that has the weights makes the same plan as a rank without them."""
    args, kwargs = captured.animal.call(EXAMPLE, captured.animal.lengths[0])
    graph = capture(captured.module, args, kwargs)
    assert graph.digest == captured.graph.digest
    assert {n: make_plan(graph, n).digest for n in STAGES} == {
        n: plan.digest for n, plan in captured.plans.items()
    }


def test_the_sizes_that_stay_free(captured: Captured) -> None:
    limitation = captured.graph.limitation(captured.animal.name)
    print(f"{captured.animal.name}: {limitation or 'no limitation'}")
    assert captured.graph.varies == captured.animal.varies
    assert (limitation is not None) == captured.animal.falls_back
