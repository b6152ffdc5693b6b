"""`pipepar plan --cluster`: plans for devices that a file describes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipepar.errors import PlanError
from pipepar.model.capture.capture import capture
from pipepar.model.split.crossing import cut_table
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Cluster
from pipepar.plan.plan import Plan
from pipepar.planner.plan_offline import OfflinePlan, plan_model
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import Prediction, model_cost
from tests.helpers.jobs.command import MLP, pipepar

SHAPE = ("--shape", "2x4")
TWO = """
[[device]]
kind = "gpu"
memory = "1 GiB"
speed = "1 MFLOPS"

[[device]]
kind = "cpu"
memory = "2 GiB"
speed = "3 MFLOPS"

[[link]]
latency = "1 ns"
bandwidth = "1 TB/s"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(TWO)
    return path


def planned(
    *devices: DeviceCost, link: LinkCost | None = None, micro_batch: int = 2
) -> OfflinePlan:
    """Plan eight equal layers with 80 bytes of weights each and 32 bytes between layers."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8))).eval()
    kinds = {frozenset((one.kind, other.kind)) for one in devices for other in devices}
    described = Cluster(devices, dict.fromkeys(kinds, link or LinkCost()))
    request = PlanRequest(micro_batch=micro_batch)
    return plan_model(model, (torch.zeros(2, 4),), {}, None, described, request)


def predicted(planning: OfflinePlan) -> Prediction:
    assert planning.choice is not None
    return planning.choice.prediction


def layers_of(planning: OfflinePlan) -> list[int]:
    assert planning.plan is not None
    return [stage.end - stage.begin for stage in planning.plan.stages]


def test_a_fast_device_gets_more_layers() -> None:
    assert layers_of(planned(DeviceCost(1e6), DeviceCost(3e6), DeviceCost(4e6))) == [1, 3, 4]


def test_a_small_device_gets_fewer_layers() -> None:
    # Four layers would need 448 bytes, with activations; three need 368.
    small = planned(DeviceCost(1e6, 400), DeviceCost(1e6, 1e9))
    assert layers_of(small) == [3, 5]
    assert predicted(small).stages[0].memory == 368


def test_a_model_that_does_not_fit() -> None:
    with pytest.raises(PlanError, match="memory of the largest device"):
        planned(DeviceCost(1e6, 100), DeviceCost(1e6, 100))


def test_predicted_seconds() -> None:
    planning = planned(DeviceCost(1e6), DeviceCost(1e6), link=LinkCost(1e-3, 32e3))
    first, second = predicted(planning).stages
    assert first.compute == second.compute == sum(planning.table.costs[:4]) / 1e6
    assert first.transfer == 0.0
    assert second.transfer == pytest.approx(1e-3 + 32 / 32e3)
    assert predicted(planning).bottleneck == second.slowest
    rate = predicted(planning).samples_per_second
    assert rate == pytest.approx(64 * 2 / predicted(planning).timeline.seconds)
    weights, channel, layer = 4 * 80, 2 * 32, 2 * 32  # a layer has an input and an output
    assert first.memory == weights + channel + layer


def test_costs_grow_with_the_micro_batch_except_for_weights() -> None:
    link = LinkCost(0.0, 32e3)
    small, large = (
        predicted(planned(DeviceCost(1e6), DeviceCost(1e6), link=link, micro_batch=n))
        for n in (2, 20)
    )
    for one, ten in zip(small.stages, large.stages, strict=True):
        assert ten.compute == pytest.approx(10 * one.compute)
        assert ten.transfer == pytest.approx(10 * one.transfer)
        assert ten.memory - 320 == pytest.approx(10 * (one.memory - 320))
    assert large.samples_per_second == pytest.approx(small.samples_per_second)


class Tied(nn.Module):
    """One weight that two operations use."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.relu(self.tokens(ids)))
        return result


def test_a_tied_weight_counts_in_each_layer_that_uses_it() -> None:
    graph = capture(Tied().eval(), (torch.zeros(2, 3, dtype=torch.int64),), {})
    layers = model_cost(graph, cut_table(graph), 2).layers
    assert [layer.weights for layer in layers if layer.weights] == [160, 160]


def test_the_table_and_the_prediction(cluster: Path) -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--cluster", cluster, "--micro-batch", 8)
    assert status == 0, output
    assert output.startswith(
        "stage operations weights on memory compute transfer balance "
        "0 0-0 80 B gpu 1 of 1,024 MiB 2.3 ms 100%"
    )
    assert " 1 1-3 240 B cpu 1 of 2,048 MiB 2.3 ms " in output
    assert " samples/s · 100% of the perfect pipeline's speed 64 micro-batches of 8, dep" in output
    assert "Times are from operation counts and the cluster file." in output


def test_a_predicted_timeline_is_written(cluster: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    status, output = pipepar("plan", MLP, *SHAPE, "--cluster", cluster, "--trace", trace)
    assert status == 0, output
    assert output.endswith(f"wrote {trace}")
    events = json.loads(trace.read_text())["traceEvents"]
    computed = [event["name"] for event in events if event["cat"] == "compute"]
    assert len(computed) == 2 * 64
    assert {event["tid"] for event in events} == {0, 1}


def test_fewer_stages_than_devices(cluster: Path, tmp_path: Path) -> None:
    path, rows, result = (tmp_path / name for name in ("plan.json", "in.npy", "out.npy"))
    np.save(rows, np.ones((3, 4), dtype=np.float32))
    status, output = pipepar(
        *("plan", MLP, *SHAPE, "--cluster", cluster, "--stages", 1, "-o", path)
    )
    assert status == 0, output
    assert len(Plan.from_json(path.read_text()).stages) == 1
    status, output = pipepar("run", MLP, rows, result, "--plan", path)
    assert status == 0, output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stages", 3), "found 3 stages for 2 devices, expected a device for each stage"),
        (("--trace", "no/trace.json"), "--trace no/trace.json: the folder no does not exist"),
        (("--trace", "same.json", "-o", "same.json"), "are both same.json; name two files"),
    ],
)
def test_invalid_combinations_are_refused(
    cluster: Path, options: tuple[object, ...], message: str
) -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--cluster", cluster, *options)
    assert status == 1
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("option", [("--micro-batch", 4), ("--trace", "trace.json")])
def test_options_that_need_a_cluster(option: tuple[object, ...]) -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--stages", 2, *option)
    assert status == 1
    assert f"found {option[0]} {option[1]} without --cluster" in output


def test_a_cluster_is_read_before_the_model(tmp_path: Path) -> None:
    status, output = pipepar("plan", "nowhere:make", *SHAPE, "--cluster", tmp_path / "none.toml")
    assert status == 1
    assert "none.toml cannot be read" in output


def test_the_cluster_file_is_not_overwritten(cluster: Path) -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--cluster", cluster, "-o", cluster)
    assert status == 1
    assert f"--output {cluster} would overwrite the data of --cluster" in output
    assert cluster.read_text() == TWO


def test_the_source_of_a_factory_is_not_overwritten(cluster: Path) -> None:
    source = Path(__file__).parents[2] / "helpers/factories.py"
    before = source.read_text()
    status, output = pipepar("plan", MLP, *SHAPE, "--cluster", cluster, "-o", source)
    assert status == 1
    assert f"--output {source} would overwrite the data of MODEL {source};" in output
    assert source.read_text() == before
