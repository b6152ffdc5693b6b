"""Batches that are nested differently from the example, also within a stream."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.pipeline import Pipeline

Call = tuple[tuple[Any, ...], dict[str, Any]]
ROWS = 5


class Both(NamedTuple):
    left: Any
    right: Any


class OtherBoth(NamedTuple):
    left: Any
    right: Any


class Named(dict[str, Any]):
    """A subclass that torch's pytree does not flatten."""


class Listed(list[Any]):
    """A subclass that torch's pytree does not flatten."""


@dataclass
class Shifted:
    x: Any
    by: float = 1.0


class Nested(nn.Module):
    def forward(
        self, x: torch.Tensor, more: dict[str, Any], scale: float, *, both: Any, mask: Any
    ) -> Any:
        y = x * scale + more["p"] - 2 * more["q"][0]
        if mask is not None:
            y = y + mask
        return {"y": y + 3 * both.left - both.right, "rest": [y, None, ("text", 1.5)]}


def rows(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed))


def more(**changed: Any) -> dict[str, Any]:
    return {"p": rows(1), "q": [rows(2)], **changed}


def call(
    x: Any = None, inner: Any = None, scale: Any = 2.0, **changed: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = (rows(0) if x is None else x, more() if inner is None else inner, scale)
    return first, {"both": Both(rows(3), rows(4)), "mask": rows(5), **changed}


def expected_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return Nested()(*args, **kwargs)


def assert_same(found: Any, expected: Any) -> None:
    assert torch.equal(found["y"], expected["y"])
    assert torch.equal(found["rest"][0], expected["rest"][0])
    assert found["rest"][1:] == expected["rest"][1:] == [None, ("text", 1.5)]


@pytest.fixture(scope="module", params=[2, ROWS])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    args, kwargs = call()
    model = Nested().eval()
    made = Pipeline(model, example_args=args, example_kwargs=kwargs, micro_batch=request.param)
    yield made
    made.close()


REFUSED: dict[str, tuple[Call, str]] = {
    "a name is missing": ((call()[0], {"both": Both(rows(3), rows(4))}), "called with arguments"),
    "one name more": (call(extra=rows(6)), "called with arguments"),
    "another name": (
        (call()[0], {"both": Both(rows(3), rows(4)), "musk": rows(5)}),
        "called with arguments",
    ),
    "one argument less": ((call()[0][:2], call()[1]), "called with arguments"),
    "other order inside": (call(inner={"q": [rows(2)], "p": rows(1)}), "called with arguments"),
    "one key more inside": (call(inner=more(r=rows(6))), "called with arguments"),
    "another key inside": (call(inner={"p": rows(1), "Q": [rows(2)]}), "called with arguments"),
    "one element more": (call(inner=more(q=[rows(2), rows(2)])), "called with arguments"),
    "an empty list": (call(inner=more(q=[])), "called with arguments"),
    "a tuple for a list": (call(inner=more(q=(rows(2),))), "called with arguments"),
    "a tensor for a list": (call(inner=more(q=rows(2))), "called with arguments"),
    "a list for a tensor": (call(x=[rows(0)]), "called with arguments"),
    "a subclass of dict": (call(inner=Named(more())), "called with arguments"),
    "an OrderedDict": (call(inner=OrderedDict(more())), "called with arguments"),
    "a subclass of list": (call(inner=more(q=Listed([rows(2)]))), "called with arguments"),
    "another named tuple": (call(both=OtherBoth(rows(3), rows(4))), "called with arguments"),
    "a plain tuple": (call(both=(rows(3), rows(4))), "called with arguments"),
    "a dataclass for a tensor": (call(x=Shifted(rows(0))), "called with arguments"),
    "None for a tensor": (call(mask=None), "mask is None, expected a tensor of torch.float32"),
    "a number for a tensor": (call(inner=more(p=1.0)), "more_p is 1.0, expected a tensor"),
    "another constant": (call(scale=3.0), "scale is 3.0, expected 2.0"),
    "a constant of another type": (call(scale=2), "scale is 2, expected 2.0"),
    "None for a constant": (call(scale=None), "scale is None, expected 2.0"),
    "a tensor for a constant": (call(scale=torch.tensor(2.0)), "scale is a torch.float32 tensor"),
    "another dtype": (call(x=rows(0).double()), "x has dtype torch.float64"),
    "another rank": (call(x=rows(0)[:, 0]), r"x has 1 dimensions, shape \(\d,\), expected 2"),
    "another number of rows": (call(x=rows(0)[:4]), r"first dimensions differ: \[4, 5, 5, 5, 5, 5"),
    "another width": (call(x=rows(0)[:, :2]), r"is \d, expected"),
}


@pytest.mark.parametrize("changed", REFUSED)
def test_a_batch_unlike_the_example_is_refused_within_a_stream(
    pipe: Pipeline, changed: str
) -> None:
    batch, message = REFUSED[changed]
    with pytest.raises(InputError, match=message):
        list(pipe._stream(iter([call(), batch, call()])))
    assert_same(pipe(*call()[0], **call()[1]), expected_of(*call()))


def test_results_before_a_refused_batch_are_returned(pipe: Pipeline) -> None:
    stream = pipe._stream(iter([call(), call(), call(scale=3.0)]))
    for _ in range(2):
        assert_same(next(stream), expected_of(*call()))
    with pytest.raises(InputError, match="scale is 3"):
        next(stream)


def test_keywords_in_another_order_are_the_same_call(pipe: Pipeline) -> None:
    args, kwargs = call()
    reordered = dict(reversed(kwargs.items()))
    assert list(reordered) != list(kwargs)
    for batch in (
        (args, kwargs),
        (args, reordered),
        (args, OrderedDict(reordered)),
        (args, kwargs),
    ):
        (found,) = pipe._stream(iter([batch]))
        assert_same(found, expected_of(args, kwargs))


def test_each_result_belongs_to_its_batch(pipe: Pipeline) -> None:
    batches = [call(x=rows(seed), mask=rows(seed + 100)) for seed in range(10, 30)]
    found = list(pipe._stream(iter(batches)))
    for each, batch in zip(found, batches, strict=True):
        assert_same(each, expected_of(*batch))


def test_named_tuples_are_positional_arguments() -> None:
    class Difference(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a - b

    pipe = Pipeline(Difference(), example_args=(rows(0), rows(1)), micro_batch=2)
    batches: list[Any] = [(rows(0), rows(1)), Both(rows(0), rows(1)), (rows(0), rows(1))]
    for found in pipe.stream(batches):
        assert torch.equal(found, rows(0) - rows(1))
    with pytest.raises(InputError, match="found no input tensor with a first dimension"):
        list(pipe.stream([Named(a=rows(0), b=rows(1))]))
    pipe.close()


def test_a_dataclass_may_be_an_input() -> None:
    class Shift(nn.Module):
        def forward(self, given: Shifted) -> Shifted:
            return Shifted(given.x + given.by)

    pipe = Pipeline(Shift(), example_args=(Shifted(rows(0)),), micro_batch=2)
    for found in pipe.stream([Shifted(rows(1)), Shifted(rows(1))]):
        assert type(found) is Shifted
        assert torch.equal(found.x, rows(1) + 1.0)
    with pytest.raises(InputError, match="given_by is 2"):
        list(pipe.stream([Shifted(rows(1)), Shifted(rows(1), 2.0)]))
    pipe.close()


def test_layers_that_are_not_captured_may_return_any_nesting() -> None:
    """The nesting is determined from the values of each micro-batch."""

    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            if bool((x > 100).any()):  # cannot be traced: it depends on values
                return x + 1
            return {"x": x + 1, "both": Both(x + 2, (x + 3, None)), "count": 7}

    model = nn.Sequential(nn.Identity(), Chooses())
    pipe = Pipeline(model, example_args=(rows(0),), micro_batch=2)
    found = pipe(rows(0))
    assert torch.equal(found["x"], rows(0) + 1)
    assert type(found["both"]) is Both
    assert torch.equal(found["both"].left, rows(0) + 2)
    assert torch.equal(found["both"].right[0], rows(0) + 3)
    assert (found["both"].right[1], found["count"]) == (None, 7)
    other = rows(0)
    other[3] = 101
    with pytest.raises(InputError, match="nested differently"):
        pipe(other)
    assert torch.equal(pipe(other[3:4]), other[3:4] + 1)
    pipe.close()
