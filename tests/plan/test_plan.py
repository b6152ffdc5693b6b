"""Plans: their JSON, their checks and their edges."""

import json
from dataclasses import replace
from typing import Any

import pytest

from pipepar.errors import PlanError
from pipepar.plan.plan import Plan, StagePlan


def stage(
    index: int, begin: int, end: int, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Any:
    return StagePlan(index, begin, end, inputs, outputs, (f"w{index}",), 8, 16)


def skipping_plan() -> Any:
    # x, mask --> 0 --a--> 1 --b--> 2
    #             0 ----s---------> 2     (a skip; mask goes there too)
    return Plan(
        model="d" * 64,
        inputs=("x", "mask"),
        outputs=("early", "y"),
        stages=(
            stage(0, 0, 3, ("x",), ("early", "s", "a")),
            stage(1, 3, 5, ("a",), ("b",)),
            stage(2, 5, 9, ("mask", "s", "b"), ("y",)),
        ),
    )


def changed(path: list[str | int], value: object) -> Any:
    """Return the JSON of the plan above with one field replaced; None removes it."""
    content = json.loads(skipping_plan().to_json())
    *parents, last = path
    record = content
    for key in parents:
        record = record[key]
    if value is None:
        del record[last]
    else:
        record[last] = value
    return json.dumps(content)


def test_edges_go_directly_from_producer_to_consumer() -> None:
    assert skipping_plan().edges == {
        (0, 1): ("a",),
        (0, 2): ("mask", "s", "early"),
        (1, 2): ("b",),
    }


def test_json_round_trip_keeps_everything() -> None:
    plan = skipping_plan()
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).digest == plan.digest
    placed = replace(plan, ranks=(4, 0, 2))
    assert Plan.from_json(placed.to_json()) == placed
    assert placed.digest != plan.digest


def test_a_stage_that_needs_no_value_has_an_edge_without_values() -> None:
    plan = Plan.from_json(changed(["stages", 1, "inputs"], []))
    assert plan.edges == {(0, 1): (), (0, 2): ("mask", "s", "early"), (1, 2): ("b",)}


def test_different_plans_have_different_digests() -> None:
    other = Plan.from_json(changed(["stages", 1, "flops"], 17))
    assert other.digest != skipping_plan().digest


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 2, "plan.version is 2, expected 3"),
        (["model"], None, "plan.model is missing"),
        (["model"], 7, "plan.model is 7, expected a string"),
        (["extra"], 7, "plan.extra is not a field"),
        (["inputs"], "x", "plan.inputs is 'x', expected a list"),
        (["inputs"], ["x", "x"], "plan.inputs contains 'x' twice"),
        (["stages"], [], "plan.stages is empty"),
        (["stages"], {}, "plan.stages is {}, expected a list"),
        (["stages", 1], 3, r"plan.stages\[1\] is 3, expected an object"),
        (["stages", 1, "begin"], True, r"plan.stages\[1\].begin is True, expected a whole number"),
        (["stages", 1, "begin"], 4, r"plan.stages\[1\].begin is 4, expected 3"),
        (["stages", 1, "end"], 3, r"plan.stages\[1\].end is 3, expected more"),
        (["stages", 2, "index"], 1, r"plan.stages\[2\].index is 1, expected 2"),
        (["stages", 0, "weights"], [1], r"plan.stages\[0\].weights\[0\] is 1, expected a string"),
        (["stages", 0, "flops"], -1, r"plan.stages\[0\].flops is -1"),
        (["stages", 1, "inputs"], ["b"], r"plan.stages\[1\].inputs contains 'b'"),
        (["stages", 1, "outputs"], ["a"], r"contains 'a', which stage 0 already provides"),
        (
            ["outputs"],
            ["z"],
            "plan.outputs contains 'z', expected an input of the model or an output",
        ),
        (["ranks"], 3, "plan.ranks is 3, expected a list of ranks, or null"),
        (["ranks"], [0, 1, -1], r"plan.ranks\[2\] is -1, expected a whole number"),
        (
            ["ranks"],
            [0, 1],
            "plan.ranks is \\[0, 1\\], expected a different rank for each of the 3",
        ),
        (["ranks"], [0, 2, 2], "plan.ranks is \\[0, 2, 2\\], expected a different rank for each"),
    ],
)
def test_a_wrong_field_is_named(path: list[str | int], value: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(changed(path, value))


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(PlanError, match="not valid JSON"):
        Plan.from_json("{")
