"""A plan for another model or another number of ranks is refused with the differences."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.errors import PlanError
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import from_module
from pipepar.plan.plan import Plan
from pipepar.planner.plan_check import require_fit
from pipepar.planner.plan_offline import make_plan
from tests.helpers.jobs.command import MLP, pipepar
from tests.helpers.models import Constant, Mlp, Sized, Skips, Tied


class Scaled(nn.Module):
    """A layer and a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(self.first(x) * self.factor)


class Renamed(Scaled):
    """The same model with another name of the input."""

    def forward(self, y: torch.Tensor) -> Any:
        return self.second(self.first(y) * self.factor)


class Early(Scaled):
    """The same model, which also returns the result of its first layer."""

    def forward(self, x: torch.Tensor) -> Any:
        h = self.first(x)
        return self.second(h * self.factor), h


X = torch.randn(2, 4)


def graph_of(module: nn.Module, *args: torch.Tensor) -> Graph:
    return capture(from_module(module.eval()).module, args or (X,), {})


def refusal(plan: Plan, graph: Graph, ranks: int = 2) -> str:
    with pytest.raises(PlanError, match="the plan does not fit:") as caught:
        require_fit(plan, graph, ranks)
    return str(caught.value)


def edited(plan: Plan, index: int, **fields: Any) -> Plan:
    stages = list(plan.stages)
    stages[index] = replace(stages[index], **fields)
    return replace(plan, stages=tuple(stages))


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Scaled(2.0), X),
        (Tied(), torch.zeros(2, 3, dtype=torch.int64)),
        (Skips(), torch.randn(1, 3, 8, 8)),
        (Sized(), torch.randn(2, 3, 8)),
        (Constant(), torch.randn(2, 8)),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), X),
    ],
    ids=["scaled", "tied", "skips", "sizes", "constant", "sequence"],
)
def test_a_plan_fits_its_own_model(module: nn.Module, x: torch.Tensor) -> None:
    graph = graph_of(module, x)
    for ranks in (1, 2):
        require_fit(Plan.from_json(make_plan(graph, ranks).to_json()), graph, ranks)


def test_another_number_of_ranks_is_refused() -> None:
    graph = graph_of(Mlp(4))
    message = refusal(make_plan(graph, 3), graph, 1)
    assert message == (
        "the plan does not fit: it has 3 stages, the job has 1 rank; start the job with mpirun "
        "-n 3, or plan again with --stages 1"
    )


def test_other_operations_and_weights_are_listed() -> None:
    plan = make_plan(graph_of(Scaled(2.0)), 2)
    message = refusal(plan, graph_of(Mlp(4)), 3)
    lines = [line.strip() for line in message.splitlines()]
    assert lines[:5] == [
        "the plan does not fit:",
        "- it has 2 stages, the job has 3 ranks",
        "- it divides 3 operations, the model has 12",
        "- weights that only the plan has (4): first.weight, first.bias, second.weight and 1 more",
        "- weights that only the model has (12): layers.0.weight, layers.0.bias, layers.1.weight "
        "and 9 more",
    ]
    assert lines[-1] == (
        "plan again with this job's model, input, --task and --dtype: "
        "mpirun -n 3 pipepar plan MODEL --input INPUT -o plan.json"
    )


def test_at_most_five_differences_are_listed() -> None:
    plan = make_plan(graph_of(Tied(), torch.zeros(2, 3, dtype=torch.int64)), 2)
    message = refusal(plan, graph_of(Scaled(2.0)), 3)
    assert "- its inputs are ids, the model's are x" in message
    assert message.count("\n  - ") == 6
    assert "and 2 more" in message


def test_weights_of_another_dtype_are_refused() -> None:
    graph = graph_of(Mlp(4).bfloat16(), X.bfloat16())
    message = refusal(make_plan(graph_of(Mlp(4)), 2), graph)
    assert "take 480 B in the plan, 240 B in the model: another --dtype, or other sizes?" in message
    assert "only" not in message


def test_tied_weights_of_another_dtype_are_counted_once() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    plan = make_plan(graph_of(Tied(), ids), 2)
    total = sum(stage.weight_bytes for stage in plan.stages)
    half = refusal(plan, graph_of(Tied().bfloat16(), ids))
    assert total < 4096
    assert f"take {total / 1024:.1f} KiB in the plan, {total / 2048:.1f} KiB in the model" in half


def test_another_input_is_refused() -> None:
    message = refusal(make_plan(graph_of(Scaled(2.0)), 2), graph_of(Renamed(2.0)))
    assert "its inputs are x, the model's are y" in message
    assert "values of its stages that the model lacks (1): x" in message


def test_another_output_is_refused() -> None:
    message = refusal(make_plan(graph_of(Scaled(2.0)), 2), graph_of(Early(2.0)))
    assert "its outputs are linear_1, the model's are linear_1, linear" in message


def test_another_constant_is_refused() -> None:
    plan, graph = make_plan(graph_of(Scaled(2.0)), 2), graph_of(Scaled(3.0))
    message = refusal(plan, graph)
    assert f"made for model {plan.model[:12]}, found {graph.digest[:12]}: inner sizes" in message
    assert "the version of torch" in message
    assert "mpirun -n 2 pipepar plan MODEL --input INPUT" in message


def test_an_edited_end_is_refused() -> None:
    graph = graph_of(Mlp(4))
    plan = make_plan(graph, 2)
    message = refusal(edited(plan, 1, end=plan.stages[1].end + 3), graph)
    assert "it divides 15 operations, the model has 12; plan again" in message


def test_an_edited_cut_is_refused() -> None:
    graph = graph_of(Mlp(4))
    plan = make_plan(graph, 2)
    cut = plan.stages[1].begin
    first, second = plan.stages
    stages = (replace(first, end=cut - 4), replace(second, begin=cut - 4))
    message = refusal(replace(plan, stages=stages), graph)
    assert "inputs of its stage 1 are relu_2, those of operations 2-11 are relu:" in message
    assert "weights of its stage 0 are " in message
    assert "was the file edited?" in message


def planned(tmp: Path, factory: str, rows: Path, stages: int) -> Path:
    path = tmp / "plan.json"
    status, output = pipepar("plan", factory, "--stages", stages, "--input", rows, "-o", path)
    assert status == 0, output
    return path


def test_the_command_line_reports_another_model(rows: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, "tests.helpers.factories:one_score", rows, 1)
    status, output = pipepar("run", MLP, rows, tmp_path / "o.npy", "--plan", plan)
    assert status == 1
    assert "it divides 2 operations, the model has 4" in output
    assert "weights that only the model has (4): 2.weight, 2.bias, 3.weight and 1 more" in output
    assert "Traceback" not in output
    assert not (tmp_path / "o.npy").exists()


def test_the_command_line_reports_another_number_of_ranks(rows: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, MLP, rows, 3)
    assert len(json.loads(plan.read_text())["stages"]) == 3
    status, output = pipepar("run", MLP, rows, tmp_path / "o.npy", "--plan", plan)
    assert status == 1
    assert "it has 3 stages, the job has 1 rank; start the job with mpirun -n 3" in output
    assert not (tmp_path / "o.npy").exists()
