"""Nested containers as inputs and outputs: each keeps its class."""

from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn
from transformers.utils.generic import ModelOutput

from pipepar.engine.script.batch_merge import merge
from pipepar.engine.script.batch_split import split
from pipepar.errors import InputError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.containers import flatten
from tests.helpers.models import run, stages_of

torch.set_num_threads(1)


class Both(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class Inner:
    x: Any
    count: int = 3


@dataclass
class Outer:
    """A dataclass that torch does not know and whose __init__ lacks one of its fields."""

    inner: Inner
    both: Any
    output: Any = None
    more: list[Any] = field(default_factory=list)
    post_inits: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.post_inits += 1


@dataclass
class Answer(ModelOutput):
    logits: Any = None
    hidden: Any = None


class Nests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, batch: Outer, answer: Any = None, *, both: Both) -> Any:
        h = self.layers[0](batch.inner.x) + batch.both
        if answer is not None:
            h = h + answer.logits
        h = self.layers[1](h) * both.left
        y = self.layers[2](h)
        return Outer(Inner(y), Both(h, "text"), Answer(logits=y), [h, {"y": y}])


def call_of(rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, shift, logits, scale = torch.randn(4, rows, 4)
    return (Outer(Inner(x), shift), Answer(logits=logits)), {"both": Both(scale, None)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_output_has_the_models_classes_and_fields(count: int) -> None:
    module = Nests().eval()
    args, kwargs = call_of(2)
    graph, plan, stages = stages_of(module, args, kwargs, count)
    assert graph.inputs == ("batch_inner_x", "batch_both", "answer_logits", "both_left")
    args, kwargs = call_of(5)
    with torch.no_grad():
        expected = module(*args, **kwargs)
    found = run(graph, plan, stages, args, kwargs)
    assert type(found) is Outer
    assert type(found.inner) is Inner
    assert type(found.both) is Both
    assert type(found.output) is Answer
    assert found.output.to_tuple()[0] is found.output["logits"]
    assert found.output.hidden is None
    assert (found.inner.count, found.both.right, found.post_inits) == (3, "text", 1)
    assert torch.equal(found.inner.x, expected.inner.x)
    assert torch.equal(found.both.left, expected.both.left)
    assert torch.equal(found.more[1]["y"], expected.more[1]["y"])


def test_batch_of_dataclasses_is_split_and_merged() -> None:
    whole = call_of(5)
    leaves, structure = flatten(whole)
    parts: list[Any] = [pytree.tree_unflatten(part, structure) for part in split(leaves, 5, 2)]
    assert [len(args[0].inner.x) for args, _ in parts] == [2, 2, 1]
    (again, _), _ = merge(parts, [2, 2, 1])
    assert type(again) is Outer
    assert torch.equal(again.inner.x, whole[0][0].inner.x)


def test_field_that_is_not_a_tensor_is_fixed() -> None:
    graph = capture(Nests().eval(), *call_of(2))
    (batch, answer), kwargs = call_of(2)
    batch = Outer(Inner(batch.inner.x, count=4), batch.both)
    with pytest.raises(InputError, match="batch_inner_count is 4, expected 3"):
        graph.flatten_inputs((batch, answer), kwargs)


class Pair(NamedTuple):
    left: Any
    right: Any


class Words(dict[str, Any]):
    """A leaf: pytree does not flatten subclasses of dict."""


X = torch.zeros(1)
LEAVES: list[Any] = [X, nn.Parameter(X), None, 1, 1.0, "a", Words(a=X)]
NODES: list[Any] = [
    *([], [X], [X, X], (), (X,), (X, X), deque([X]), deque([X, X]), deque([X], 3)),
    *({}, {"a": X}, {"b": X}, {"a": X, "b": X}, {"b": X, "a": X}, {"a": X, "b": X, "c": X}),
    *(OrderedDict(a=X), OrderedDict(b=X), OrderedDict(a=X, b=X), OrderedDict(b=X, a=X)),
    *(defaultdict(None, a=X), defaultdict(X.clone, a=X), defaultdict(None, b=X)),
    *(
        Both(X, X),
        Pair(X, X),
        Inner(X),
        Outer(Inner(X), X),
        Answer(X),
        Answer(X, X),
        Answer(hidden=X),
    ),
]
TREES = [*LEAVES, *NODES, *([node] for node in NODES), *((X, {"a": node}) for node in NODES)]


def test_expected_structure_is_returned_if_torch_finds_it_equal() -> None:
    flatten(TREES)  # registers the dataclasses
    for other in TREES:
        expected = pytree.tree_structure(other)
        for tree in TREES:
            leaves, structure = flatten(tree, expected)
            torch_leaves, torch_structure = pytree.tree_flatten(tree)
            assert list(map(id, leaves)) == list(map(id, torch_leaves))
            assert structure == torch_structure
            assert (structure is expected) == (torch_structure == expected)


@pytest.mark.parametrize("tree", TREES)
def test_tree_with_the_expected_structure_is_flattened_without_torch(
    tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, expected = flatten(tree)
    monkeypatch.delattr(pytree, "tree_flatten")
    found, structure = flatten(tree, expected)
    assert structure is expected
    assert list(map(id, found)) == list(map(id, leaves))


def test_object_of_an_unregistered_dataclass_is_not_a_leaf() -> None:
    @dataclass
    class New:
        x: Any

    leaves, structure = flatten([New(X)], pytree.tree_structure([X]))
    assert leaves[0] is X
    assert structure == pytree.tree_structure([New(X)])


def test_registered_dataclass_keeps_its_registration() -> None:
    @dataclass
    class Known:
        x: Any
        note: str = "default"

    pytree.register_dataclass(Known, field_names=["x"], drop_field_names=["note"])

    class Returns(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return Known(x + 1, "dropped")

    graph, plan, stages = stages_of(Returns(), (torch.ones(2),), {}, 1)
    found = run(graph, plan, stages, (torch.ones(3),))
    assert type(found) is Known
    assert found.note == "default"
