"""Legal cuts and the tensors that cross there, in the planner and in `pipepar plan --show-cuts`."""

import copy
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from pipepar.model.aliases import writes
from pipepar.model.capture.capture import capture
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import Cut, cut_table
from pipepar.model.split.cut import parts
from pipepar.model.split.stage_sizes import is_scalar
from pipepar.planner.plan_offline import make_plan
from tests.helpers.jobs.command import MLP, pipepar
from tests.helpers.models import Dicts, InPlace, Mlp, Skips, Tied

pytestmark = pytest.mark.long(40)


class Nested(nn.Module):
    """Blocks of layers, with a tuple between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            left, right = block(x).split(4, -1)
            x = torch.cat([right, left], -1) + 1
        return x


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 2)))


def graphs() -> Iterator[Graph]:
    x = torch.randn(2, 8)
    batch = {"x": x, "offset": torch.randn(2)}
    for module, args, kwargs in [
        (Mlp(), (torch.randn(2, 16),), {}),
        (Skips(), (torch.randn(2, 3, 16, 16),), {}),
        (InPlace(), (torch.randn(2, 4, 8, 8),), {}),
        (Dicts(), (batch,), {"scale": 2.0}),
        (Tied(), (torch.zeros(2, 5, dtype=torch.int64),), {}),
        (Nested(), (x,), {}),
        (sequence(), (torch.randn(2, 4),), {}),
    ]:
        yield capture(module.eval(), args, kwargs)


def crossing_of_parts(graph: Graph, cut: Cut) -> set[str]:
    """Return the names of the tensors that the two stages of this cut exchange."""
    first, last = parts(graph, [cut.position])
    scalars = {node.name for node in graph.nodes if is_scalar(node)}
    passing = (set(graph.outputs) | set(last.inputs)) & (set(graph.inputs) | set(first.outputs))
    return passing - scalars


def sizes_of(graph: Graph) -> dict[str, int]:
    """Return the bytes of each value at the example's sizes, from a run on meta."""
    run = fx.Interpreter(copy.deepcopy(graph.module).to("meta"), garbage_collect_values=False)
    run.run(*graph.example)
    tensors = {node.name: value for node, value in run.env.items()}
    return {name: t.nbytes for name, t in tensors.items() if isinstance(t, torch.Tensor)}


def test_a_cut_has_the_tensors_that_its_stages_exchange() -> None:
    for graph in graphs():
        sizes = sizes_of(graph)
        cuts = cut_table(graph).cuts
        assert cuts
        for cut in cuts:
            names = crossing_of_parts(graph, cut)
            expected = (len(names), sum(sizes[name] for name in names))
            assert (cut.tensors, cut.nbytes) == expected, (graph.module, cut)


def test_no_cut_breaks_a_write_or_a_tuple() -> None:
    seen = 0
    for graph in graphs():
        nodes = graph.nodes
        legal = {cut.position for cut in cut_table(graph).cuts}
        for at, node in enumerate(nodes):
            pairs = writes(node)
            if node.target is operator.getitem:
                pairs = [*pairs, *node.all_input_nodes]
            for origin in pairs:
                seen += 1
                assert not legal & set(range(nodes.index(origin) + 1, at + 1))
    assert seen > 20


def test_the_planner_uses_the_same_cuts() -> None:
    for graph in graphs():
        table = cut_table(graph)
        crossing = dict(enumerate(table.crossing))
        assert {p: size for p, size in crossing.items() if size is not None} == {
            cut.position: float(cut.nbytes) for cut in table.cuts
        }
        begins = [stage.begin for stage in make_plan(graph, 2).stages[1:]]
        assert set(begins) <= {cut.position for cut in table.cuts}


def test_a_cut_names_the_operation_and_the_users_module() -> None:
    graph = capture(Nested().eval(), (torch.randn(2, 8),), {})
    table = cut_table(graph)
    assert [(cut.operation, cut.module) for cut in table.cuts if cut.module] == [
        (name, f"blocks.{block}.{layer}")
        for block in range(3)
        for name, layer in ((f"linear_{block}", 0), (f"relu_{block}", 1))
        for name in [name.removesuffix("_0")]
    ]
    adds = [cut for cut in table.cuts if cut.operation.startswith("add")]
    assert [cut.module for cut in adds] == ["", ""]  # the third addition is the end of the model


def test_a_cut_of_a_sequential_names_the_child() -> None:
    graph = capture(sequence().eval(), (torch.randn(2, 4),), {})
    assert [cut.module for cut in cut_table(graph).cuts] == [
        "1"
    ]  # child "1" modifies the output of "0" in place
    deeper = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4))
    graph = capture(deeper.eval(), (torch.randn(2, 4),), {})
    assert [cut.module for cut in cut_table(graph).cuts] == ["0.0", "0.1"]


def test_the_share_of_work_before_a_cut() -> None:
    graph = capture(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), (torch.randn(2, 4),), {})
    assert [cut.done for cut in cut_table(graph).cuts] == pytest.approx([0.25, 0.5, 0.75])


def test_each_cut_has_a_line() -> None:
    status, output = pipepar("plan", MLP, "--shape", "2x4", "--show-cuts")
    assert status == 0, output
    assert output.startswith("module after tensors bytes work before 0 _0 1 32 B 25.0%")
    assert output.endswith("4 operations, 3 legal cuts, 3 of one tensor")


def test_chosen_cuts_are_marked() -> None:
    status, output = pipepar("plan", MLP, "--shape", "2x4", "--show-cuts", "--stages", 2)
    assert status == 0, output
    assert output.count("<- stage") == 1
    marked = output.split("<- stage 1")[0].rsplit("%", 1)[0]
    assert marked.endswith("1 _1 1 32 B 50.0")
    assert "stage operations weights compute 0 0-1 160 B 50%" in output


def test_a_plan_needs_stages(tmp_path: Path) -> None:
    for options in ((), ("--show-cuts", "-o", tmp_path / "plan.json")):
        status, output = pipepar("plan", MLP, "--shape", "2x4", *options)
        assert status == 1
        assert "found no --stages, expected a number; give --stages N" in output


def test_a_pipe_gets_full_module_names(tmp_path: Path) -> None:
    name = "a_module_with_quite_a_long_name" * 4
    (tmp_path / "deep.py").write_text(
        "import torch\n"
        "class Deep(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.{name} = torch.nn.ModuleList([torch.nn.Linear(4, 4)] * 2)\n"
        "    def forward(self, x):\n"
        f"        return self.{name}[1](torch.relu(self.{name}[0](x)))\n"
    )
    command = [sys.executable, "-m", "pipepar", "plan", "deep:Deep", "--shape", "2x4"]
    ended = subprocess.run(
        [*command, "--show-cuts"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "40"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = ended.stdout.splitlines()
    assert lines[1].startswith(f"{name}.0 ")
    assert len(lines) == 1 + 2 + 1
    assert "\x1b" not in ended.stdout
