"""The watchdog in whole jobs under mpirun: a killed, stopped or stalled rank ends the job.

Each test has one kind of failure, and the failed rank is reported once. The detection itself, with
other numbers of ranks and without MPI, is tested in tests/comm/liveness.
"""

import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipepar.comm.native import _pulse
from pipepar.comm.native._pulse import Limits
from pipepar.comm.world import World
from pipepar.errors import InputError
from pipepar.supervision.watchdog import agree_on_limits
from tests.helpers.cluster.mpirun import Finished, finish, mpirun, start
from tests.helpers.jobs.command import pipepar

pytestmark = pytest.mark.long(80)

SECONDS = 2.0
"""The timeout for silence and for stalls."""
SLACK = 8.0
"""Seconds that the end of a job may take after the timeout, on a busy host."""
PATIENCE = 60.0
ROOT = str(Path(__file__).parents[2])


class Watched:
    """A job in its own folder, with short timeouts."""

    def __init__(
        self,
        folder: Path,
        command: list[str],
        ranks: int,
        trap: str = "stay -1",
        stall: float = SECONDS,
        ceiling: float = PATIENCE,
    ) -> None:
        self.folder = folder
        self.clock = folder / "clock"
        limits = {"SILENCE": SECONDS, "STALL": stall, "STALL_CEILING": ceiling}
        env = {f"PIPEPAR_{name}_SECONDS": str(seconds) for name, seconds in limits.items()}
        env |= {"PIPEPAR_TEST_TRAP": trap, "PIPEPAR_TEST_CLOCK": str(self.clock)}
        options = ("--wdir", str(folder), "-x", "PYTHONPATH")
        whole = [*mpirun(ranks, *options), sys.executable, *command]
        self.job = start(whole, env | {"PYTHONPATH": ROOT})

    def wait(self) -> Finished:
        """Wait for the end of the job and of all its ranks."""
        ended = finish(self.job, PATIENCE)
        deadline = time.monotonic() + 2
        while self.ranks() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.ranks()
        return ended

    def seconds(self) -> float:
        """Return the seconds since the trap of the model was triggered."""
        return time.time() - float(self.clock.read_text())

    def ranks(self) -> list[int]:
        """Return the process ids of its ranks that are still running."""
        mark = f"PIPEPAR_TEST_CLOCK={self.clock}".encode()
        found = []
        for process in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                rank = b"PMIX_RANK=" in (env := Path(f"/proc/{process}/environ").read_bytes())
                if rank and mark in env.split(b"\0"):
                    found.append(int(process))
        return found

    def stacks(self) -> str:
        """Return the stacks that all ranks have written."""
        (path,) = self.folder.glob("pipepar-stacks-*.txt")
        return path.read_text()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write rows and plans: with a plan, ranks measure nothing, so only the pipeline runs."""
    folder = tmp_path_factory.mktemp("inputs")
    np.save(folder / "rows.npy", np.arange(40, dtype=np.float32)[:, None] * np.ones(4, np.float32))
    for ranks in (2, 3):
        status, printed = pipepar(
            *("plan", "tests.helpers.factories:trapped", "--shape", "2x4", "--stages", ranks),
            *("-o", folder / f"plan{ranks}.json"),
        )
        assert status == 0, printed
    return folder


def job(
    inputs: Path, tmp_path: Path, ranks: int, trap: str, *options: str, **limits: float
) -> Watched:
    command = ["-m", "pipepar", "run", "tests.helpers.factories:trapped", str(inputs / "rows.npy")]
    command += ["out.npy", "--micro-batch", "2", "--plan", str(inputs / f"plan{ranks}.json")]
    return Watched(tmp_path, [*command, *options], ranks, trap, **limits)


def assert_reported_once(ended: Finished, rank: int, ranks: int, text: str) -> None:
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert ended.output.count("### pipepar: rank") == 1, ended.output
    assert f"### pipepar: rank {rank} of {ranks} on " in ended.output, ended.output
    assert text in ended.output, ended.output


# Number of ranks, and the failing rank.
PLACES = [(2, 0), (2, 1), *(pytest.param(3, k, marks=pytest.mark.full) for k in range(3))]


@pytest.mark.parametrize(("ranks", "rank"), PLACES[1:])
def test_a_killed_rank(ranks: int, rank: int, inputs: Path, tmp_path: Path) -> None:
    watched = job(inputs, tmp_path, ranks, f"kill {rank}")
    ended = watched.wait()
    assert watched.seconds() < SLACK
    assert ended.status not in (0, -signal.SIGTERM), ended.output
    assert re.search(rf"process rank {rank} .*signal 9", " ".join(ended.output.split()))


@pytest.mark.parametrize(("ranks", "rank"), PLACES)
def test_a_stopped_rank(ranks: int, rank: int, inputs: Path, tmp_path: Path) -> None:
    watched = job(inputs, tmp_path, ranks, f"stop {rank}")
    ended = watched.wait()
    assert watched.seconds() < SECONDS + SLACK
    assert_reported_once(ended, rank, ranks, "sends no heartbeat")
    assert f"stage {rank} was computing micro-batch 4 (samples 8 to 9)." in ended.output
    assert "in _stop" in watched.stacks()  # it was continued to write its stacks
    for other in range(ranks):
        assert f"=== rank {other} of {ranks}" in watched.stacks()


@pytest.mark.parametrize(
    ("trap", "ranks", "rank"),
    [
        ("stay", 2, 1),
        ("hold", 2, 0),
        *(
            pytest.param(*each, marks=pytest.mark.full)
            for each in [("stay", 3, 1), ("hold", 3, 0), ("hold", 3, 2)]
        ),
    ],
)
def test_a_stalled_stage(trap: str, ranks: int, rank: int, inputs: Path, tmp_path: Path) -> None:
    watched = job(inputs, tmp_path, ranks, f"{trap} {rank}")
    ended = watched.wait()
    assert watched.seconds() < SECONDS + SLACK
    text = f"stage {rank} has been computing micro-batch 4 (samples 8 to 9)"
    assert_reported_once(ended, rank, ranks, text)
    assert f"in _{trap}" in watched.stacks()
    if trap == "stay":  # a rank that holds the GIL can neither write a journal nor check for one
        assert ended.output.count("finished samples are saved: run again with --resume") == 1


def test_a_source_that_hangs(inputs: Path, tmp_path: Path) -> None:
    options = ("--preprocess", "tests.helpers.functions:hangs_at_6")
    watched = job(inputs, tmp_path, 2, "stay -1", *options)
    ended = watched.wait()
    assert watched.seconds() < SECONDS + SLACK
    assert_reported_once(ended, 0, 2, "stage 0 has been reading micro-batch 3")
    assert "in hangs_at_6" in watched.stacks()


def test_a_rank_that_hangs_while_it_loads(inputs: Path, tmp_path: Path) -> None:
    watched = job(inputs, tmp_path, 2, "load 1", ceiling=3 * SECONDS)
    ended = watched.wait()
    assert watched.seconds() < 3 * SECONDS + SLACK
    assert_reported_once(ended, 1, 2, "stage 1 has been working outside of micro-batches")
    assert "rank 0 on " in ended.output
    assert ": waiting for another rank for " in ended.output
    assert "set PIPEPAR_STALL_CEILING_SECONDS to more" in ended.output
    assert "in trapped" in watched.stacks()


def test_a_killed_launcher(inputs: Path, tmp_path: Path) -> None:
    watched = job(inputs, tmp_path, 2, "stay 1", stall=PATIENCE)
    while not watched.clock.exists():
        assert watched.job.poll() is None
        time.sleep(0.05)
    ranks = watched.ranks()
    assert len(ranks) == 2
    shared = {word for rank in ranks for word in mapped(rank) if word.startswith("/dev/shm/")}
    assert shared
    watched.job.kill()
    deadline = time.monotonic() + SLACK
    while watched.ranks():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not [path for path in shared if os.path.exists(path)]
    watched.job.communicate()


def mapped(process: int) -> list[str]:
    """Return the words of a process's table of memory mappings."""
    return Path(f"/proc/{process}/maps").read_text().split()


def test_a_pause_and_a_slow_micro_batch_end_nothing(inputs: Path, tmp_path: Path) -> None:
    ended = job(inputs, tmp_path, 2, "pause 1", stall=2 * SECONDS).wait()
    assert ended.status == 0, ended.output
    assert not list(tmp_path.glob("pipepar-stacks-*"))


SCRIPT = """
import time
import torch
from torch import nn
from pipepar import Pipeline

def batches():
    for index, batch in enumerate(torch.zeros(2, 2, 4)):
        yield batch
        time.sleep({pause} * (index == 0))

model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
with Pipeline(model, example_args=(torch.zeros(2, 4),), micro_batch=2) as pipe:
    for index, result in enumerate(pipe.stream(batches())):
        time.sleep({pause} * (index == 0))
    time.sleep({pause})
    pipe(torch.zeros(2, 4))
    {end}
"""


def script(tmp_path: Path, **words: object) -> Watched:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(**words))
    return Watched(tmp_path, [str(path)], 2)


def test_a_slow_caller_ends_nothing(tmp_path: Path) -> None:
    ended = script(tmp_path, pause=1.3 * SECONDS, end="").wait()
    assert ended.status == 0, ended.output


def test_a_script_that_stops(tmp_path: Path) -> None:
    end = "import os; pipe.rank or os.kill(os.getpid(), 19); pipe(torch.zeros(2, 4))"
    ended = script(tmp_path, pause=0, end=end).wait()
    assert_reported_once(ended, 0, 2, "waiting for its caller")


@pytest.mark.full  # without mpirun: test_invalid_timeouts_are_refused
def test_an_invalid_timeout_under_mpirun(tmp_path: Path) -> None:
    env = {"PIPEPAR_SILENCE_SECONDS": "soon", "PYTHONPATH": ROOT}
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(pause=0, end=""))
    ended = finish(start([*mpirun(2), sys.executable, str(path)], env), PATIENCE)
    assert ended.status not in (0, -signal.SIGTERM)
    assert "PIPEPAR_SILENCE_SECONDS is 'soon', expected seconds above 0, or inf" in ended.output


NAMES = ("SILENCE", "STALL", "STALL_CEILING")


def limits_for(monkeypatch: pytest.MonkeyPatch, **given: str) -> Any:
    """Return the timeouts (silence, floor, ceiling) with some of the variables set."""
    monkeypatch.setattr(_pulse, "Limits", lambda *limits: limits)
    for name in NAMES:
        monkeypatch.delenv(f"PIPEPAR_{name}_SECONDS", raising=False)
    for name, seconds in given.items():
        monkeypatch.setenv(f"PIPEPAR_{name}_SECONDS", seconds)
    return agree_on_limits(World.start())


def test_default_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits_for(monkeypatch) == (10, 60, 1800)
    assert limits_for(monkeypatch, SILENCE="", STALL="") == (10, 60, 1800)


def test_timeouts_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits_for(monkeypatch, SILENCE="3") == (3, 60, 1800)
    assert limits_for(monkeypatch, STALL="0.5", STALL_CEILING="inf") == (10, 0.5, float("inf"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan"])
def test_invalid_timeouts_are_refused(
    name: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"PIPEPAR_{name}_SECONDS is '{given}', expected seconds above 0, or inf for no limit"
    with pytest.raises(InputError, match=message):
        limits_for(monkeypatch, **{name: given})


def test_the_deadline_grows_with_the_longest_micro_batch() -> None:
    limits = Limits(10, 60, 1800)
    assert limits.deadline(0) == 1800  # no micro-batch so far
    assert limits.deadline(0.001) == limits.deadline(1.9) == 60
    assert limits.deadline(4) == 120
    assert limits.deadline(100) == 1800
    assert Limits(10, float("inf"), float("inf")).deadline(1) == float("inf")
