"""The watchdog reports a silent or stalled rank once.

The ranks are forks of this process, see tests/helpers/cluster/forked.py. tests/supervision has
tests with whole jobs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pipepar.trace import Activity
from tests.helpers.cluster.forked import Case, Forked, Job, Part, job, jobs

pytestmark = pytest.mark.long(25)

SILENCE = 1.0
STALL = 1.0
LIMITS = {"SILENCE": SILENCE, "STALL": STALL, "STALL_CEILING": 60.0}
PATIENCE = 30.0
"""Seconds to wait for the end of a job, on a busy host."""
SLACK = 6.0
"""Seconds that the end may take after a timeout: for the stacks and the delays of the pulse."""
FOREVER = 600.0


def wait_in_channel(world: Forked, doing: Activity = "receive") -> None:
    """Wait for other ranks as channels do."""
    world.heartbeat.set_activity(doing, 4)
    while True:
        world.heartbeat.waited()
        time.sleep(0.05)


def compute(world: Forked, seconds: float) -> None:
    world.heartbeat.set_activity("compute", 4, torch.tensor([8, 9]))
    world.mark("failing")
    time.sleep(seconds)


def begin(world: Forked) -> None:
    """Begin a first micro-batch, from which the pulse learns that one takes almost no time.

    It ends with the next work. The clock of the pulse advances in steps of 0.05 s: a longer one
    could contain a step, and 30 times that is more than `STALL`.
    """
    world.heartbeat.set_activity("compute", 3)


def stop(world: Forked) -> None:
    # Perhaps before the first heartbeat with this work; the rank sends it when it is continued.
    compute(world, 0.0)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(FOREVER)


def kill(world: Forked) -> None:
    world.mark("failing")
    os.kill(os.getpid(), signal.SIGKILL)


def stay(world: Forked) -> None:
    begin(world)
    compute(world, FOREVER)


def hold(world: Forked) -> None:
    begin(world)
    world.heartbeat.set_activity("compute", 4, torch.tensor([8, 9]))
    world.mark("failing")
    ctypes.PyDLL(None).sleep(60)  # keeps the GIL


def on(ranks: tuple[int, ...], part: Part, others: Part = wait_in_channel) -> Part:
    """Return a function that is `part` on some ranks and `others` on all other ranks."""
    return lambda world: part(world) if world.rank in ranks else others(world)


def report_of(ended: Job, reporter: int, rank: int, text: str) -> str:
    """Return the final report, which only `reporter` may have printed, about `rank`."""
    printed = [ended.stderr(each) for each in range(len(ended.processes))]
    assert ended.reporters() == [reporter], printed
    block = printed[reporter]
    assert block.count("### pipepar: rank") == 1, block
    assert f"### pipepar: rank {rank} of {len(printed)} on " in block, block
    assert text in block, block
    return block


def test_a_stopped_rank_is_reported(tmp_path: Path) -> None:
    places = [(2, 0), (2, 1), (3, 1), (4, 0), (5, 3), (5, 4)]
    cases = {f"{rank} of {size}": Case(size, on((rank,), stop), LIMITS) for size, rank in places}
    with jobs(tmp_path, cases) as started:
        for (size, rank), ended in zip(places, started.values(), strict=True):
            ended.wait(PATIENCE)
            assert ended.seconds_from("failing", rank) < SILENCE + SLACK
            check_stopped(ended, size, rank)


def check_stopped(ended: Job, size: int, rank: int) -> None:
    # Rank 0 reports; if it is the stopped one, rank 1 does.
    block = report_of(ended, 0 if rank else 1, rank, "sends no heartbeat")
    assert "at most 1.0 s expected" in block
    assert f"stage {rank} was computing micro-batch 4 (samples 8 to 9)." in block, block
    assert "set PIPEPAR_SILENCE_SECONDS" in block
    stacks = ended.stacks()
    for each in range(size):
        assert stacks.count(f"=== rank {each} of {size} on ") == 1
        # Rank 0 receives the beats of all ranks, others those of their neighbours.
        heard = rank != 0 or each in (1, 2)
        assert (f"\n  rank {each} on " in block) == (heard and each != rank), block
    assert "in stop" in stacks  # it was continued to write its stacks
    assert "in wait_in_channel" in stacks


def test_a_killed_rank_is_reported(tmp_path: Path) -> None:
    """There is no launcher that detects it, as when a host fails."""
    cases = {f"rank {rank}": Case(3, on((rank,), kill), LIMITS) for rank in range(3)}
    with jobs(tmp_path, cases) as started:
        for rank, ended in enumerate(started.values()):
            ended.wait(PATIENCE)
            assert ended.seconds_from("failing", rank) < SILENCE + SLACK
            report_of(ended, 0 if rank else 1, rank, "sends no heartbeat")
            assert ended.status[rank] == -signal.SIGKILL
            assert f"=== rank {rank} of" not in ended.stacks()


def test_without_rank_0_the_first_remaining_rank_reports(tmp_path: Path) -> None:
    groups = [(0,), (0, 1), (0, 3), (0, 1, 2)]
    cases = {f"{killed}": Case(4, on(killed, kill), LIMITS) for killed in groups}
    with jobs(tmp_path, cases) as started:
        for killed, ended in zip(groups, started.values(), strict=True):
            ended.wait(PATIENCE)
            reporter = next(rank for rank in range(4) if rank not in killed)
            ended.wait_for(range(4), PATIENCE)  # so that any second report would be there
            assert ended.reporters() == [reporter], killed
            assert ended.stderr(reporter).count("sends no heartbeat") == 1


def test_a_rank_that_computes_for_too_long_is_reported(tmp_path: Path) -> None:
    cases = {f"rank {rank}": Case(3, on((rank,), stay), LIMITS) for rank in range(3)}
    with jobs(tmp_path, cases) as started:
        for rank, ended in enumerate(started.values()):
            ended.wait(PATIENCE)
            assert ended.seconds_from("failing", rank) < STALL + SLACK
            text = f"stage {rank} has been computing micro-batch 4 (samples 8 to 9) for "
            block = report_of(ended, 0, rank, text)
            assert "at most 1.0 s expected; the other ranks wait for it" in block
            assert "set PIPEPAR_STALL_SECONDS to more" in block
            assert block.count("waiting for micro-batch 4 for ") == 2
            assert "in compute" in ended.stacks()


def test_rank_0_reports_without_the_gil(tmp_path: Path) -> None:
    with job(tmp_path, Case(2, on((0,), hold), LIMITS)) as ended:
        ended.wait(PATIENCE)
        report_of(ended, 0, 0, "stage 0 has been computing micro-batch 4 (samples 8 to 9)")
        assert "in hold" in ended.stacks()


def stall_in(doing: Activity) -> Part:
    """Return a function that computes a first micro-batch and then never ends its next work."""

    def part(world: Forked) -> None:
        begin(world)
        world.heartbeat.set_activity(doing, 4)
        time.sleep(FOREVER)

    return part


def test_the_report_has_the_work_and_its_timeout(tmp_path: Path) -> None:
    low = LIMITS | {"STALL": 0.5, "STALL_CEILING": 1.5}
    cases = {
        "reading micro-batch 4 for ": (stall_in("source"), LIMITS, 1.0, "STALL"),
        "writing micro-batch 4 for ": (stall_in("sink"), LIMITS, 1.0, "STALL"),
        "working outside of micro-batches for ": (stall_in("other"), low, 1.5, "STALL_CEILING"),
        # The first micro-batch may take long: kernels are loaded, files are read.
        "computing micro-batch 4 ": (
            lambda world: compute(world, FOREVER),
            low,
            1.5,
            "STALL_CEILING",
        ),
    }
    parts = {work: Case(2, on((1,), each[0]), each[1]) for work, each in cases.items()}
    with jobs(tmp_path, parts) as started:
        for work, ended in started.items():
            ended.wait(PATIENCE)
            block = report_of(ended, 0, 1, f"stage 1 has been {work}")
            _, _, limit, name = cases[work]
            assert f"at most {limit} s expected; the other ranks wait for it" in block
            assert f"set PIPEPAR_{name}_SECONDS to more" in block


def test_if_all_ranks_wait_the_first_that_does_not_send_is_reported(tmp_path: Path) -> None:
    def part(world: Forked) -> None:
        begin(world)
        wait_in_channel(world, "send" if world.rank == 0 else "receive")

    with job(tmp_path, Case(3, part, LIMITS)) as ended:
        ended.wait(PATIENCE)
        block = report_of(ended, 0, 1, "waits, as all other ranks do")
    assert "no rank has made progress for " in block
    assert "stage 1 is waiting for micro-batch 4\n" in block


def test_the_report_is_completed_by_the_caller(tmp_path: Path) -> None:
    case = Case(2, on((1,), stay), LIMITS, lambda block: f"{block}\nrun again")
    with job(tmp_path, case) as ended:
        ended.wait(PATIENCE)
        assert report_of(ended, 0, 1, "has stalled").endswith("\nrun again\n")


def test_if_the_reporting_rank_hangs_all_ranks_end(tmp_path: Path) -> None:
    """`complete` hangs, as on a broken disk: the pulse prints the report, and all ranks end."""

    def hang(block: str) -> str:
        time.sleep(FOREVER)
        return block

    with job(tmp_path, Case(3, on((1,), stay), LIMITS, hang)) as ended:
        ended.wait_for([0], PATIENCE)
        report_of(ended, 0, 1, "has stalled")
        ended.wait_for(range(3), 10)
        assert ended.status == {0: 1, 1: 1, 2: 1}
