"""Exported programs: read in parts, without running code from the file."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.engine.stage import Stage
from pipepar.errors import InputError, WeightsError
from pipepar.model.capture.capture import capture
from pipepar.model.source.open_source import from_exported
from pipepar.planner.plan_offline import make_plan
from tests.helpers.models import run

DIM = torch.export.Dim


class Net(nn.Module):
    """Tied layers, statistics, a non-persistent buffer, a constant, a keyword and a dict output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.again = self.first
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("shift", torch.arange(4.0), persistent=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, *, scale: float = 2.0) -> Any:
        h = self.second(torch.relu(self.again(x))) * scale + self.shift
        h = self.dropout(h) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {"y": self.norm(h), "first": self.first(x)}


def saved(path: Path, net: nn.Module, rows: Any = DIM.AUTO, **kwargs: Any) -> Path:
    shapes = ({0: rows}, *(None for _ in kwargs))
    program = torch.export.export(
        net, (torch.randn(3, 4),), kwargs, dynamic_shapes=shapes, strict=False
    )
    torch.export.save(program, path)
    return path


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_stages_of_a_program(net: nn.Module, tmp_path: Path, count: int) -> None:
    source = from_exported(saved(tmp_path / "m.pt2", net))
    assert all(parameter.is_meta for parameter in source.module.parameters())
    graph = capture(source.module, (torch.randn(3, 4),), {})
    assert graph.varies == "batch"
    plan = make_plan(graph, count)
    stages = [Stage.load(graph, plan, index, source.weights) for index in range(count)]
    x = torch.randn(7, 4)
    found = run(graph, plan, stages, (x,))
    with torch.no_grad():
        expected = net(x)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sizes_that_were_fixed_at_export_stay_fixed(net: nn.Module, tmp_path: Path) -> None:
    source = from_exported(saved(tmp_path / "m.pt2", net, rows=DIM.STATIC))
    graph = capture(source.module, (torch.randn(3, 4),), {})
    with pytest.raises(InputError, match=r"x\.size\(0\) is 7, expected 3"):
        graph.flatten_inputs((torch.randn(7, 4),))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_file_is_not_loaded(net: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt2", net)
    pickled, created = tmp_path / "pickled", tmp_path / "created"
    torch.save(Harmful(created), pickled)
    changed = tmp_path / "changed.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled.read_bytes() if "sample_inputs" in name else old.read(name))
    with pytest.raises(InputError, match="more than tensors, which could run code"):
        from_exported(changed)
    assert not created.exists()


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt2", nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train())
    with pytest.raises(InputError, match=r"training mode \(dropout"):
        from_exported(path)


def test_a_file_that_is_not_a_program_is_refused(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no exported program at"):
        from_exported(tmp_path / "gone.pt2")
    (tmp_path / "x.pt2").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"cannot be read as an exported program \(BadZipFile"):
        from_exported(tmp_path / "x.pt2")


def test_a_truncated_file_is_refused(net: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt2", net)
    source = from_exported(path)
    graph = capture(source.module, (torch.randn(3, 4),), {})
    source.weights.check(list(graph.weights.values()))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="the file is truncated"):
        list(source.weights.read(list(graph.weights.values())))
