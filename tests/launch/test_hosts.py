"""Runs over several hosts whose links are slow, delayed, lossy or cut."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.cluster.hosts import Hosts, HostsError, hosts, obstacle, set_link
from tests.helpers.cluster.mpirun import Finished, finish, start
from tests.helpers.cluster.waiting import until
from tests.helpers.jobs.command import pipepar

pytestmark = [
    pytest.mark.long(80),
    pytest.mark.hosts,
    pytest.mark.skipif(obstacle() is not None, reason=obstacle() or ""),
]

ROOT = str(Path(__file__).parents[2])
WIDE = "tests.helpers.factories:wide"
SLOW = "tbf rate 100mbit burst 32kb latency 50ms"
# A queue of a few packets drops packets of a burst.
SHORT = "tbf rate 100mbit burst 16kb limit 24kb"
DELAYED = "netem delay 10ms rate 500mbit"
LOSSY = "netem loss 1%"


@contextmanager
def connected_hosts(*shapes: str) -> Iterator[Hosts]:
    try:
        with hosts(shapes) as up:
            yield up
    except HostsError as error:
        if "kind is unknown" not in str(error):
            raise
        pytest.skip(f"this kernel lacks a queueing discipline: {error}")


def ranks(up: Hosts, *arguments: object) -> Finished:
    command = [sys.executable, "-m", "pipepar", *map(str, arguments)]
    return finish(start(up.mpirun(command), {"COLUMNS": "200"}), 90)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "rows.npy"
    np.save(path, np.random.default_rng(0).standard_normal((1024, 512), dtype=np.float32))
    return path


@pytest.mark.parametrize(
    "shapes",
    [("", ""), ("", "", ""), (SLOW, SLOW), (SHORT, SHORT), (DELAYED, DELAYED), (LOSSY, LOSSY)],
    ids=["two", "three", "slow", "short queue", "delayed", "lossy"],
)
def test_the_output_does_not_depend_on_the_links(
    shapes: tuple[str, ...], samples: Path, tmp_path: Path
) -> None:
    fixed = ("--micro-batch", 32)
    status, output = pipepar("run", WIDE, samples, tmp_path / "one.npy", *fixed)
    assert status == 0, output
    with connected_hosts(*shapes) as up:
        ended = ranks(up, "run", WIDE, samples, tmp_path / "many.npy", *fixed)
        lost = up.dropped()
    assert ended.status == 0, ended.output
    assert f"{len(shapes)} ranks, {len(shapes)} hosts" in ended.output, ended.output
    assert np.array_equal(np.load(tmp_path / "one.npy"), np.load(tmp_path / "many.npy"))
    assert lost > 0 or not {SHORT, LOSSY} & set(shapes)


def test_the_doctor_names_a_slow_link() -> None:
    with connected_hosts("", "", SLOW) as up:
        ended = ranks(up, "doctor", "--json")
    assert ended.status == 0, ended.output
    found, _ = json.JSONDecoder().raw_decode(ended.output[ended.output.index("{") :])
    assert [facts["host"] for facts in found["ranks"]] == list(up.names)
    fast, slow = (link["bandwidth"] for link in found["links"])
    assert slow * 4 < fast
    warned = [each for each in found["findings"] if each["check"] == "links"]
    assert warned[0]["level"] == "warning"
    assert f"ranks 1 and 2 ({up.names[1]}, {up.names[2]}): " in warned[0]["found"]


@pytest.mark.parametrize("side", [0, 1])
def test_a_cut_link_leaves_no_process_on_either_host(side: int, tmp_path: Path) -> None:
    """Otherwise mpirun waits for its daemon on the other side of the cut, and vice versa."""
    trapped, rows, plan = (
        "tests.helpers.factories:trapped",
        tmp_path / "rows.npy",
        tmp_path / "plan.json",
    )
    np.save(rows, np.zeros((40, 4), np.float32))
    status, output = pipepar("plan", trapped, "--shape", "2x4", "--stages", 3, "-o", plan)
    assert status == 0, output
    clock, silence = tmp_path / "clock", 2.0
    env = {"PIPEPAR_TEST_TRAP": "stay 1", "PIPEPAR_TEST_CLOCK": str(clock)}
    env |= {"PIPEPAR_SILENCE_SECONDS": str(silence), "PYTHONPATH": ROOT}
    run = ["--wdir", str(tmp_path), "-x", "PYTHONPATH", sys.executable, "-m", "pipepar", "run"]
    run += [trapped, str(rows), "out.npy", "--plan", str(plan), "--micro-batch", "2"]
    with connected_hosts("", "") as up:
        job = start(up.mpirun(run, (2, 1)), env)
        assert until(lambda: clock.exists() or job.poll() is not None, 60)
        set_link(up.names[side], "down")
        cut = time.monotonic()
        ended = finish(job, 60)
        assert until(lambda: not (processes(up, 0) | processes(up, 1)), 20)
        seconds = time.monotonic() - cut
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert ended.output.count("### pipepar: rank") == 1, ended.output
    assert f"### pipepar: rank 2 of 3 on {up.names[1]} sends no heartbeat" in ended.output, (
        ended.output
    )
    assert seconds < silence + 5


def processes(up: Hosts, host: int) -> set[str]:
    listed = ["ip", "netns", "pids", up.names[host]]
    return set(subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split())


def test_removing_hosts_ends_their_processes() -> None:
    def fail() -> None:
        with hosts(["", ""]) as up:
            left.append(subprocess.Popen(up.on(1, ["sleep", "600"])))
            raise RuntimeError("the test fails")

    left: list[subprocess.Popen[bytes]] = []
    with pytest.raises(RuntimeError, match="the test fails"):
        fail()
    assert left[0].wait(timeout=10) != 0
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert f"-{os.getpid()}-" not in listed
