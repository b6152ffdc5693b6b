"""Whatever nests tensors goes in and comes out as the model's own class."""

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
    """Not known to torch; its __init__ takes other things than it has fields."""

    inner: Inner
    both: Any
    output: Any = None
    more: list[Any] = field(default_factory=list)
    made: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.made += 1


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
def test_classes_come_back_with_their_fields(count: int) -> None:
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
    assert (found.inner.count, found.both.right, found.made) == (3, "text", 1)
    assert torch.equal(found.inner.x, expected.inner.x)
    assert torch.equal(found.both.left, expected.both.left)
    assert torch.equal(found.more[1]["y"], expected.more[1]["y"])


def test_a_batch_of_dataclasses_is_split_and_merged() -> None:
    whole = call_of(5)
    leaves, structure = flatten(whole)
    parts: list[Any] = [pytree.tree_unflatten(part, structure) for part in split(leaves, 5, 2)]
    assert [len(args[0].inner.x) for args, _ in parts] == [2, 2, 1]
    (again, _), _ = merge(parts, [2, 2, 1])
    assert type(again) is Outer
    assert torch.equal(again.inner.x, whole[0][0].inner.x)


def test_a_fixed_field_is_part_of_the_graph() -> None:
    graph = capture(Nests().eval(), *call_of(2))
    (batch, answer), kwargs = call_of(2)
    batch = Outer(Inner(batch.inner.x, count=4), batch.both)
    with pytest.raises(InputError, match="batch_inner_count is 4, expected 3"):
        graph.flatten_inputs((batch, answer), kwargs)


class Pair(NamedTuple):
    left: Any
    right: Any


class Words(dict[str, Any]):
    """Of a class that torch does not take apart."""


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


def test_a_structure_is_the_expected_one_where_torch_finds_them_equal() -> None:
    flatten(TREES)  # from here on torch knows the dataclasses
    for other in TREES:
        expected = pytree.tree_structure(other)
        for tree in TREES:
            leaves, structure = flatten(tree, expected)
            own, true = pytree.tree_flatten(tree)
            assert list(map(id, leaves)) == list(map(id, own))
            assert structure == true
            assert (structure is expected) == (true == expected)


@pytest.mark.parametrize("tree", TREES)
def test_what_has_the_expected_structure_is_not_taken_apart_by_torch(
    tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, expected = flatten(tree)
    monkeypatch.delattr(pytree, "tree_flatten")
    found, structure = flatten(tree, expected)
    assert structure is expected
    assert list(map(id, found)) == list(map(id, leaves))


def test_an_object_that_torch_does_not_know_yet_is_no_leaf() -> None:
    @dataclass
    class New:
        x: Any

    leaves, structure = flatten([New(X)], pytree.tree_structure([X]))
    assert leaves[0] is X
    assert structure == pytree.tree_structure([New(X)])


def test_a_registered_dataclass_keeps_its_registration() -> None:
    @dataclass
    class Known:
        x: Any
        note: str = "left out"

    pytree.register_dataclass(Known, field_names=["x"], drop_field_names=["note"])

    class Gives(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return Known(x + 1, "gone")

    graph, plan, stages = stages_of(Gives(), (torch.ones(2),), {}, 1)
    found = run(graph, plan, stages, (torch.ones(3),))
    assert type(found) is Known
    assert found.note == "left out"
