"""Ranks watch one another: a rank that is silent or stuck is named once.

The ranks are forks of this process, see tests/helpers/cluster/forked.py; whole jobs are in
tests/supervision.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pipepar.trace import Doing
from tests.helpers.cluster.forked import Case, Forked, Job, Part, job, jobs

pytestmark = pytest.mark.long(25)

SILENCE = 1.0
STALL = 1.0
LIMITS = {"SILENCE": SILENCE, "STALL": STALL, "STALL_CEILING": 60.0}
PATIENCE = 30.0
"""For a machine that has much else to do."""
SLACK = 6.0
"""How long the end may take beyond a limit: stacks, and what the ranks allow one another."""
EVER = 600.0


def get_on(world: Forked, doing: Doing = "receive") -> None:
    """Wait for other ranks, as channels do, with a sign of life now and then."""
    world.heartbeat.tell(doing, 4)
    while True:
        world.heartbeat.waited()
        time.sleep(0.05)


def compute(world: Forked, seconds: float, microbatch: int = 4) -> None:
    world.heartbeat.tell("compute", microbatch, torch.tensor([8, 9]))
    world.mark("sprung")
    time.sleep(seconds)


def begin(world: Forked) -> None:
    """A first micro-batch: how long one takes is known then."""
    compute(world, 0.01, 3)


def stop(world: Forked) -> None:
    compute(world, 0.0)  # perhaps before the first heartbeat with it: the woken rank reports it
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(EVER)


def kill(world: Forked) -> None:
    world.mark("sprung")
    os.kill(os.getpid(), signal.SIGKILL)


def stay(world: Forked) -> None:
    begin(world)
    compute(world, EVER)


def hold(world: Forked) -> None:
    begin(world)
    world.heartbeat.tell("compute", 4, torch.tensor([8, 9]))
    world.mark("sprung")
    ctypes.PyDLL(None).sleep(60)  # keeps the GIL


def on(ranks: tuple[int, ...], part: Part, others: Part = get_on) -> Part:
    """Some ranks do one thing, all others another one."""
    return lambda world: part(world) if world.rank in ranks else others(world)


def told(ended: Job, teller: int, rank: int, what: str) -> str:
    """The block that one rank told, naming a rank, and none besides."""
    said = [ended.said(each) for each in range(len(ended.processes))]
    assert ended.tellers() == [teller], said
    block = ended.said(teller)
    assert block.count("### pipepar: rank") == 1, block
    assert f"### pipepar: rank {rank} of {len(said)} on " in block, block
    assert what in block, block
    return block


def test_a_rank_that_is_stopped_is_named(tmp_path: Path) -> None:
    places = [(2, 0), (2, 1), (3, 1), (4, 0), (5, 3), (5, 4)]
    cases = {f"{rank} of {size}": Case(size, on((rank,), stop), LIMITS) for size, rank in places}
    with jobs(tmp_path, cases) as started:
        for (size, rank), ended in zip(places, started.values(), strict=True):
            ended.wait(PATIENCE)
            assert ended.seconds_from("sprung", rank) < SILENCE + SLACK
            check_stopped(ended, size, rank)


def check_stopped(ended: Job, size: int, rank: int) -> None:
    # Rank 0 speaks; where it is the one, the next.
    block = told(ended, 0 if rank else 1, rank, "fell silent")
    assert "at most 1.0 s expected" in block
    assert f"stage {rank} was computing micro-batch 4 (samples 8 to 9)." in block, block
    assert "set PIPEPAR_SILENCE_SECONDS" in block
    stacks = ended.stacks()
    for each in range(size):
        assert stacks.count(f"=== rank {each} of {size} on ") == 1
        # Rank 0 hears all, others their neighbours.
        heard = rank != 0 or each in (1, 2)
        assert (f"\n  rank {each} on " in block) == (heard and each != rank), block
    assert "in stop" in stacks  # it was woken to say where it is
    assert "in get_on" in stacks


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    """No launcher sees it here, as none does where a host is gone."""
    cases = {f"rank {rank}": Case(3, on((rank,), kill), LIMITS) for rank in range(3)}
    with jobs(tmp_path, cases) as started:
        for rank, ended in enumerate(started.values()):
            ended.wait(PATIENCE)
            assert ended.seconds_from("sprung", rank) < SILENCE + SLACK
            told(ended, 0 if rank else 1, rank, "fell silent")
            assert ended.status[rank] == -signal.SIGKILL
            assert f"=== rank {rank} of" not in ended.stacks()


def test_where_rank_0_is_gone_the_first_one_left_speaks(tmp_path: Path) -> None:
    groups = [(0,), (0, 1), (0, 3), (0, 1, 2)]
    cases = {f"{gone}": Case(4, on(gone, kill), LIMITS) for gone in groups}
    with jobs(tmp_path, cases) as started:
        for gone, ended in zip(groups, started.values(), strict=True):
            ended.wait(PATIENCE)
            teller = next(rank for rank in range(4) if rank not in gone)
            ended.wait_for(range(4), PATIENCE)  # who else would speak has done so
            assert ended.tellers() == [teller], gone
            assert ended.said(teller).count("fell silent") == 1


def test_a_rank_that_computes_for_too_long_is_named(tmp_path: Path) -> None:
    cases = {f"rank {rank}": Case(3, on((rank,), stay), LIMITS) for rank in range(3)}
    with jobs(tmp_path, cases) as started:
        for rank, ended in enumerate(started.values()):
            ended.wait(PATIENCE)
            assert ended.seconds_from("sprung", rank) < STALL + SLACK
            what = f"stage {rank} has been computing micro-batch 4 (samples 8 to 9) for "
            block = told(ended, 0, rank, what)
            assert "at most 1.0 s expected; the others wait for it" in block
            assert "set PIPEPAR_STALL_SECONDS to more" in block
            assert block.count("waiting for micro-batch 4 for ") == 2
            assert "in compute" in ended.stacks()


def test_a_rank_0_whose_python_is_stuck_speaks_all_the_same(tmp_path: Path) -> None:
    with job(tmp_path, Case(2, on((0,), hold), LIMITS)) as ended:
        ended.wait(PATIENCE)
        told(ended, 0, 0, "stage 0 has been computing micro-batch 4 (samples 8 to 9)")
        assert "in hold" in ended.stacks()


def at(doing: Doing) -> Part:
    """After a first micro-batch a rank does one thing for ever."""

    def part(world: Forked) -> None:
        begin(world)
        world.heartbeat.tell(doing, 4)
        time.sleep(EVER)

    return part


def test_what_a_rank_was_at_and_what_its_limit_was_is_told(tmp_path: Path) -> None:
    low = LIMITS | {"STALL": 0.5, "STALL_CEILING": 1.5}
    cases = {
        "reading micro-batch 4 for ": (at("source"), LIMITS, 1.0, "STALL"),
        "writing micro-batch 4 for ": (at("sink"), LIMITS, 1.0, "STALL"),
        "at work outside of micro-batches for ": (at("other"), low, 1.5, "STALL_CEILING"),
        # The first may take long: kernels are loaded, files are read.
        "computing micro-batch 4 ": (
            lambda world: compute(world, EVER),
            low,
            1.5,
            "STALL_CEILING",
        ),
    }
    parts = {what: Case(2, on((1,), each[0]), each[1]) for what, each in cases.items()}
    with jobs(tmp_path, parts) as started:
        for what, ended in started.items():
            ended.wait(PATIENCE)
            block = told(ended, 0, 1, f"stage 1 has been {what}")
            _, _, limit, name = cases[what]
            assert f"at most {limit} s expected; the others wait for it" in block
            assert f"set PIPEPAR_{name}_SECONDS to more" in block


def test_where_no_rank_moves_the_first_that_does_not_send_is_named(tmp_path: Path) -> None:
    def part(world: Forked) -> None:
        begin(world)
        get_on(world, "send" if world.rank == 0 else "receive")

    with job(tmp_path, Case(3, part, LIMITS)) as ended:
        ended.wait(PATIENCE)
        block = told(ended, 0, 1, "waits, as all others do")
    assert "no rank has moved for " in block
    assert "stage 1 is waiting for micro-batch 4 and does not get on" in block


def test_what_else_there_is_to_know_is_added(tmp_path: Path) -> None:
    case = Case(2, on((1,), stay), LIMITS, lambda block: f"{block}\nrun again")
    with job(tmp_path, case) as ended:
        ended.wait(PATIENCE)
        assert told(ended, 0, 1, "does not get on").endswith("\nrun again\n")


def test_where_the_teller_hangs_all_ranks_end(tmp_path: Path) -> None:
    """As at a disk that hangs: the block is printed, and all ranks end."""

    def hangs(block: str) -> str:
        time.sleep(EVER)
        return block

    with job(tmp_path, Case(3, on((1,), stay), LIMITS, hangs)) as ended:
        ended.wait_for([0], PATIENCE)
        told(ended, 0, 1, "does not get on")
        ended.wait_for(range(3), 10)
        assert ended.status == {0: 1, 1: 1, 2: 1}
