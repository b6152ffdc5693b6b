"""`pipepar plan --profile`, runs with its plan, and measurements of a run without a plan."""

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
    """Return an input with enough rows for several micro-batches of any size."""
    path = tmp_path / "many.npy"
    np.save(path, np.random.default_rng(3).standard_normal((700, 4), dtype=np.float32))
    return path


def computed(trace: Path) -> int:
    """Return the number of micro-batches that the first stage computed."""
    events: list[Any] = json.loads(trace.read_text())["traceEvents"]
    return sum(event["cat"] == "compute" and event["tid"] == 0 for event in events)


def unsplit(path: Path, size: int) -> Any:
    """Return the output of the unsplit model on micro-batches of this size."""
    model, x = mlp(), torch.from_numpy(np.load(path))
    with torch.no_grad():
        parts = [model(x[begin : begin + size]) for begin in range(0, len(x), size)]
    return torch.cat(parts).numpy()


def assert_ran_with(trace: Path, given: Path, written: Path, size: int) -> None:
    assert computed(trace) == -(-len(np.load(given)) // size)
    assert np.array_equal(np.load(written), unsplit(given, size))


def test_a_run_uses_the_plan_of_measured_ranks(many: Path, tmp_path: Path) -> None:
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
    # A size that can only come from the plan.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"micro_batch": 23}))
    ended = ranks(2, "run", MLP, many, out, "--plan", path, "--trace", trace)
    assert ended.status == 0, ended.output
    assert_ran_with(trace, many, out, 23)


def test_options_override_measurements_and_plan(many: Path, tmp_path: Path) -> None:
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
    assert_ran_with(trace, many, out, 23)
    status, output = command("run", MLP, str(many), str(out), *options, "--micro-batch", "50")
    assert status == 0, output
    assert_ran_with(trace, many, out, 50)


def test_one_process_plans_for_any_number_of_equal_devices(tmp_path: Path) -> None:
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


def test_a_run_without_a_plan_measures_the_micro_batch(many: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "out.npy", tmp_path / "trace.json"
    status, output = command("run", MLP, str(many), str(out), "--trace", str(trace))
    assert status == 0, output
    count = computed(trace)
    (size,) = (power for power in (1 << n for n in range(9)) if -(-700 // power) == count)
    assert_ran_with(trace, many, out, size)


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_a_run_of_few_samples(samples: int, tmp_path: Path) -> None:
    given, out = tmp_path / "few.npy", tmp_path / "out.npy"
    np.save(given, np.ones((samples, 4), dtype=np.float32))
    status, output = command("run", MLP, str(given), str(out))
    assert status == 0, output
    assert len(np.load(out)) == samples
    assert f"{samples} samples in" in output


def test_a_read_only_cache_is_noted(
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
        assert output.count("note: measured times cannot be cached in") == 1


def test_stages_must_equal_the_measured_ranks() -> None:
    ended = ranks(2, "plan", MLP, *SHAPE, "--stages", 3)
    assert ended.status != 0
    assert "found --stages 3 with 2 ranks to measure, expected a stage for each" in ended.output
    assert ended.output.count("error:") == 1
    assert "Traceback" not in ended.output


def test_profile_and_cluster_are_exclusive(tmp_path: Path) -> None:
    status, output = pipepar(
        *("plan", "nowhere:make", *SHAPE, "--profile", "--cluster", tmp_path / "none.toml")
    )
    assert status == 1
    assert f"found --profile and --cluster {tmp_path / 'none.toml'}, expected one" in output


def test_profile_in_one_process_needs_stages() -> None:
    status, output = pipepar("plan", MLP, *SHAPE, "--profile")
    assert status == 1
    assert "found no --stages, expected a number" in output


@pytest.mark.parametrize("profile", [(), ("--profile",)])
@pytest.mark.parametrize("option", ["--free-order", "--fewer"])
def test_options_that_need_a_cluster(option: str, profile: tuple[str, ...]) -> None:
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
    """Return the device of each stage in the printed table."""
    return [word for word in output.split() if word in ("small", "large", "slow")]


def test_free_order_shows_the_device_of_each_stage(cluster: Path) -> None:
    """The small device has memory for the second of the model's two layers only."""
    model = ("plan", "tests.helpers.factories:one_score", *SHAPE, "--cluster", cluster)
    options = ("--stages", 2, "--micro-batch", 1)
    status, output = pipepar(*model, *options)
    assert status == 1
    assert "found no way to cut" in output
    status, output = pipepar(*model, *options, "--free-order")
    assert status == 0, output
    assert devices_of(output) == ["large", "small"]


def test_fewer_leaves_out_useless_devices(cluster: Path, tmp_path: Path) -> None:
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
