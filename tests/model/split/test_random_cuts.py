"""Random sets of legal cuts give the model's results."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source, from_module
from pipepar.model.split.crossing import cut_table
from tests.helpers.models import InPlace, plan_of, run
from tests.helpers.zoo import Call, DenoisingUNet, noise, padded, small_bert

torch.set_num_threads(1)


def pictures(batch: int, _: int) -> Call:
    return (torch.randn(batch, 4, 8, 8),), {}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Call]]] = {
    "in place": (InPlace, pictures),
    "skips": (DenoisingUNet, noise),
    "tied": (small_bert, padded),
}


@cache
def captured(name: str) -> tuple[nn.Module, Source, Graph, list[int]]:
    make, call = MODELS[name]
    torch.manual_seed(0)
    module = make().eval()
    source = from_module(module)
    graph = capture(source.module, *call(2, 6))
    legal = [cut.position for cut in cut_table(graph).cuts]
    return module, source, graph, legal


@given(st.sampled_from(sorted(MODELS)), st.data())
def test_random_cuts_give_the_same(name: str, data: Any) -> None:
    module, source, graph, legal = captured(name)
    cuts = data.draw(st.lists(st.sampled_from(legal), min_size=1, max_size=6, unique=True))
    plan = plan_of(graph, sorted(cuts))
    stages = [Stage.load(graph, plan, i, source.weights) for i in range(len(plan.stages))]
    args, kwargs = MODELS[name][1](3, 9)
    found = run(graph, plan, stages, args, kwargs)
    with torch.no_grad():
        expected = module(*args, **kwargs)  # last, because InPlace writes into its input
    leaves = [pytree.tree_leaves(tree) for tree in (found, expected)]
    tensors = [[x for x in side if isinstance(x, torch.Tensor)] for side in leaves]
    assert len(tensors[0]) == len(tensors[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*tensors, strict=True))
