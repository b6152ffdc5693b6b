"""`pipepar plan --profile`, what a run makes of it, and what a run without a plan measures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipepar.plan.plan import Plan
from tests.helpers.cluster.mpirun import Finished, run_ranks
from tests.helpers.factories import mlp
from tests.helpers.jobs.command import MLP, command, pipepar

pytestmark = pytest.mark.long(45)

SHAPE = ("--shape", "2x4")
SECONDS = 120


def ranks(count: int, *arguments: object) -> Finished:
    return run_ranks(count, ["-m", "pipepar", *map(str, arguments)], SECONDS)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Rows enough that several micro-batches of any size to choose from are under way."""
    path = tmp_path / "many.npy"
    np.save(path, np.random.default_rng(3).standard_normal((700, 4), dtype=np.float32))
    return path


def computed(trace: Path) -> int:
    """How many micro-batches the first stage computed."""
    events: list[Any] = json.loads(trace.read_text())["traceEvents"]
    return sum(event["cat"] == "compute" and event["tid"] == 0 for event in events)


def unsplit(path: Path, size: int) -> Any:
    """What the whole model makes of micro-batches of a size."""
    model, x = mlp(), torch.from_numpy(np.load(path))
    with torch.no_grad():
        parts = [model(x[begin : begin + size]) for begin in range(0, len(x), size)]
    return torch.cat(parts).numpy()


def assert_travelled_by(trace: Path, given: Path, made: Path, size: int) -> None:
    assert computed(trace) == -(-len(np.load(given)) // size)
    assert np.array_equal(np.load(made), unsplit(given, size))


def test_ranks_are_measured_and_run_as_planned(many: Path, tmp_path: Path) -> None:
    path, out, trace = (tmp_path / name for name in ("plan.json", "out.npy", "trace.json"))
    ended = ranks(2, "plan", MLP, *SHAPE, "--profile", "-o", path)
    assert ended.status == 0, ended.output
    assert ended.output.count("samples/s") == 1
    assert "Times are measured." in ended.output
    assert "\x1b" not in ended.output  # no colours in a file
    assert f"wrote {path}" in " ".join(ended.output.split())
    plan = Plan.from_json(path.read_text())
    assert len(plan.stages) == 2
    assert plan.micro_batch is not None
    assert plan.depth in (1, 2)
    # A size that nothing but the plan names.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"micro_batch": 23}))
    ended = ranks(2, "run", MLP, many, out, "--plan", path, "--trace", trace)
    assert ended.status == 0, ended.output
    assert_travelled_by(trace, many, out, 23)


def test_what_is_told_of_sizes_goes_before_the_plan(many: Path, tmp_path: Path) -> None:
    path, out, trace = (tmp_path / name for name in ("plan.json", "out.npy", "trace.json"))
    status, output = command(
        *("plan", MLP, *SHAPE, "--stages", "1", "--profile", "-o", str(path)),
        *("--micro-batch", "23", "--depth", "3"),
    )
    assert status == 0, output
    plan = Plan.from_json(path.read_text())
    assert (plan.micro_batch, plan.depth) == (23, 3)
    assert "64 micro-batches of 23, depth 3" in output
    options = ("--plan", str(path), "--trace", str(trace))
    status, output = command("run", MLP, str(many), str(out), *options)
    assert status == 0, output
    assert_travelled_by(trace, many, out, 23)
    status, output = command("run", MLP, str(many), str(out), *options, "--micro-batch", "50")
    assert status == 0, output
    assert_travelled_by(trace, many, out, 50)


def test_one_process_stands_for_any_number_like_it(tmp_path: Path) -> None:
    path, trace = tmp_path / "plan.json", tmp_path / "trace.json"
    options = ("--stages", 3, "--profile", "-o", path, "--trace", trace)
    status, output = pipepar("plan", MLP, *SHAPE, *options)
    assert status == 0, output
    plan = Plan.from_json(path.read_text())
    assert [stage.index for stage in plan.stages] == [0, 1, 2]
    assert output.startswith("device: ")
    assert "Times are measured." in output
    assert f"micro-batches of {plan.micro_batch}, depth {plan.depth}: " in output
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["tid"] for event in events} == {0, 1, 2}


def test_a_run_measures_which_size_is_best(many: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "out.npy", tmp_path / "trace.json"
    status, output = command("run", MLP, str(many), str(out), "--trace", str(trace))
    assert status == 0, output
    count = computed(trace)
    (size,) = (power for power in (1 << n for n in range(9)) if -(-700 // power) == count)
    assert_travelled_by(trace, many, out, size)


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_few_samples_can_be_measured_for(samples: int, tmp_path: Path) -> None:
    given, out = tmp_path / "few.npy", tmp_path / "out.npy"
    np.save(given, np.ones((samples, 4), dtype=np.float32))
    status, output = command("run", MLP, str(given), str(out))
    assert status == 0, output
    assert len(np.load(out)) == samples
    assert f"{samples} samples in" in output


def test_a_folder_for_times_that_cannot_be_written_is_noted(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for words in (
        ("run", MLP, str(rows), str(tmp_path / "out.npy")),
        ("plan", MLP, *SHAPE, "--stages", "2", "--profile"),
    ):
        status, output = command(*words)
        assert status == 0, output
        assert output.count("note: measured times cannot be kept in") == 1


def test_stages_are_as_many_as_the_ranks_that_are_measured() -> None:
    ended = ranks(2, "plan", MLP, *SHAPE, "--stages", 3)
    assert ended.status != 0
    assert "found --stages 3 with 2 ranks to measure, expected a stage for each" in ended.output
    assert ended.output.count("error:") == 1
    assert "Traceback" not in ended.output


def test_a_described_cluster_needs_no_measuring(tmp_path: Path) -> None:
    status, output = pipepar(
        *("plan", "nowhere:make", *SHAPE, "--profile", "--cluster", tmp_path / "none.toml")
    )
    assert status == 1
    assert f"found --profile and --cluster {tmp_path / 'none.toml'}, expected one" in output


def test_measuring_in_one_process_needs_a_number_of_stages() -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--profile")
    assert status == 1
    assert "found no --stages, expected a number" in output


@pytest.mark.parametrize("profile", [(), ("--profile",)])
@pytest.mark.parametrize("option", ["--free-order", "--fewer"])
def test_what_needs_a_described_cluster(option: str, profile: tuple[str, ...]) -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--stages", 2, option, *profile)
    assert status == 1
    assert f"found {option} without --cluster, expected devices to predict times for" in output
    assert "or --profile" not in output


DEVICES = """
[[device]]
kind = "small"
memory = "100 B"
speed = "1 MFLOPS"

[[device]]
kind = "large"
memory = "1 GiB"
speed = "1 MFLOPS"

[[device]]
kind = "slow"
memory = "1 GiB"
speed = "0.001 MFLOPS"

[[link]]
latency = "1 ns"
bandwidth = "1 TB/s"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.toml"
    path.write_text(DEVICES)
    return path


def devices_of(output: str) -> list[str]:
    """The column of the table that names each stage's device."""
    return [word for word in output.split() if word in ("small", "large", "slow")]


def test_in_any_order_the_table_says_which_device_takes_which_stage(cluster: Path) -> None:
    """Of the model's two layers the small device has room for the second alone."""
    model = ("plan", "tests.helpers.factories:one_score", *SHAPE, "--cluster", cluster)
    options = ("--stages", 2, "--micro-batch", 1)
    status, output = pipepar(*model, *options)
    assert status == 1
    assert "found no way to cut" in output
    status, output = pipepar(*model, *options, "--free-order")
    assert status == 0, output
    assert devices_of(output) == ["large", "small"]


def test_a_device_of_no_use_is_not_in_the_table(cluster: Path, tmp_path: Path) -> None:
    cluster.write_text(DEVICES.replace("100 B", "1 GiB"))
    model = ("plan", MLP, *SHAPE, "--cluster", cluster, "--micro-batch", 1)
    status, output = pipepar(*model)
    assert status == 0, output
    assert devices_of(output) == ["small", "large", "slow"]
    for options in (("--fewer",), ("--fewer", "--free-order")):
        path = tmp_path / "plan.json"
        status, output = pipepar(*model, *options, "-o", path)
        assert status == 0, output
        assert sorted(devices_of(output)) == ["large", "small"]
        assert len(Plan.from_json(path.read_text()).stages) == 2
