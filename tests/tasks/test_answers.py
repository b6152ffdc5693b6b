"""Rows from a model's output, and answers in output files."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pipepar.data.writers.open_output import open_output
from pipepar.errors import InputError
from pipepar.tasks.answers import answered_by, as_tensors, logits_of, tensors_by_name
from pipepar.tasks.classes import Classes


def test_tensors_by_name() -> None:
    x, y = torch.randn(2, 3), torch.randn(2)
    assert tensors_by_name(x) == {"output": x}
    found = as_tensors({"a": (x, None, 3), "b": {"c": y}}, {})
    assert isinstance(found, dict)
    assert list(found) == ["a.0", "b.c"]


def test_the_logits_of_several_outputs() -> None:
    x, y = torch.randn(2, 3), torch.randn(2)
    assert logits_of(x) is x
    assert logits_of({"scores": x}) is x
    assert logits_of({"hidden": y, "logits": x}) is x
    with pytest.raises(InputError, match=r"returns 2 tensors \(hidden, scores\), expected one"):
        logits_of({"hidden": y, "scores": x})


def test_scores_of_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(4, 3)
    names = Classes(("a", "b", "c"))
    expected = names.answer(logits.bfloat16().float(), {})
    assert names.answer(logits.bfloat16(), {}) == expected


def test_a_class_without_a_name_is_a_number() -> None:
    assert Classes(("a",)).answer(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), {}) == [
        {"label": 1, "score": pytest.approx(torch.tensor(1.0).sigmoid().item())},
        {"label": "a", "score": pytest.approx(torch.tensor(1.0).sigmoid().item())},
    ]


@pytest.mark.parametrize(
    ("made", "message"),
    [(None, "f returned a NoneType"), ((torch.ones(1),), "a tuple"), ({"x": [1]}, "list as 'x'")],
)
def test_a_wrong_type_from_a_function_is_refused(made: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        answered_by(lambda output: made, "f")(torch.ones(1), {})


def test_a_function_may_return_any_mapping() -> None:
    made = OrderedDict(x=torch.ones(1))
    assert answered_by(lambda output: made, "f")(None, {}) == made


ANSWERS: list[Any] = [{"a": 1.5}, [], None, "ü", [1, {"b": [True]}]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1]])
def test_answers_are_written_in_the_order_of_the_input(tmp_path: Path, order: list[int]) -> None:
    path = tmp_path / "o.jsonl"
    with open_output(path, 5) as writer:
        for some in (order[:2], order[2:]):
            writer.write(torch.tensor(some), [ANSWERS[at] for at in some])
    assert [json.loads(line) for line in path.read_text().splitlines()] == ANSWERS


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_an_array_file_refuses_answers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"o.{suffix}"
    with (
        pytest.raises(InputError, match=r"holds arrays; found a list of dict.*\.jsonl"),
        open_output(path, 1) as writer,
    ):
        writer.write(torch.tensor([0]), [{"a": 1}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([1], "a list of 1 values for 2 samples"),
        ([1, torch.ones(1)], "sample 4 is a Tensor that JSON cannot represent"),
        ([1, {2: {3}}], "sample 4 is a dict that JSON cannot represent"),
    ],
)
def test_answers_that_json_cannot_store_are_refused(
    tmp_path: Path, answers: list[Any], message: str
) -> None:
    with (
        pytest.raises(InputError, match=message),
        open_output(tmp_path / "o.jsonl", 5) as writer,
    ):
        writer.write(torch.tensor([3, 4]), answers)


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    nothing: None = None


def test_names_of_tensors_in_nested_containers() -> None:
    one = torch.ones(1)
    torch.export.register_dataclass(Scores)
    output = {"pair": Pair(one, one), "list": [one, None], "scores": Scores(one)}
    assert sorted(tensors_by_name(output)) == ["list.0", "pair.left", "pair.right", "scores.logits"]
