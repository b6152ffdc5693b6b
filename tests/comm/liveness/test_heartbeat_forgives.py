"""Ranks watch over one another: what may take its time does, and the job goes on.

The ranks are forks of this process, see tests/helpers/cluster/forked.py.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path

from pipepar.trace import Doing
from tests.helpers.cluster.forked import Case, Forked, Job, Part, job, jobs
from tests.helpers.cluster.waiting import until

LIMIT = 1.0
LONG = 2.2 * LIMIT
LIMITS = {"SILENCE": LIMIT, "STALL": LIMIT, "STALL_CEILING": LIMIT}
PATIENCE = 30.0


def compute(world: Forked, seconds: float, microbatch: int = 4) -> None:
    world.heartbeat.tell("compute", microbatch)
    time.sleep(seconds)


def all_well(ended: Job) -> None:
    ended.wait(PATIENCE)
    said = {rank: ended.said(rank) for rank in range(len(ended.processes))}
    assert set(ended.status.values()) == {0}, (ended.status, said)
    assert not any(said.values()), said
    assert not ended.stacks()


def leave(world: Forked) -> None:
    """The others are not told by a meeting."""
    world.heartbeat.close()
    world.heartbeat.close()
    os._exit(0)


def a_rank_that_is_done_early(world: Forked) -> None:
    if world.rank != 1:
        world.heartbeat.tell("caller", 0)
        time.sleep(LONG)
    leave(world)


def beside(what: Part) -> Part:
    """Rank 0 does that; rank 1 gets on, but not with what rank 0 waits for."""

    def part(world: Forked) -> None:
        compute(world, 0.01)
        if world.rank == 0:
            what(world)
        else:
            for index in range(int(LONG / 0.1)):
                compute(world, 0.1, index)

    return part


def a_meeting(world: Forked) -> None:
    world.heartbeat.tell("other", 0)
    with world.heartbeat.waiting():
        time.sleep(LONG)


def a_caller(world: Forked) -> None:
    world.heartbeat.tell("caller", 0)
    time.sleep(LONG)


def a_channel(doing: Doing) -> Part:
    def part(world: Forked) -> None:
        world.heartbeat.tell(doing, 4)
        for _ in range(int(LONG / 0.05)):
            world.heartbeat.waited()
            time.sleep(0.05)

    return part


def work_that_waits_within(world: Forked) -> None:
    """Such as loading weights that another rank sends: it is timed from a wait's end."""
    world.heartbeat.tell("other", 0)
    for _ in range(4):
        time.sleep(0.6 * LIMIT)
        world.heartbeat.waited()


def a_pause(world: Forked) -> None:
    compute(world, 0.7 * LIMIT)
    compute(world, 0.7 * LIMIT, 5)


def test_what_may_take_its_time(tmp_path: Path) -> None:
    waits: list[Part] = [a_meeting, a_caller, work_that_waits_within, a_pause]
    cases = {part.__name__: Case(2, beside(part), LIMITS) for part in waits}
    doing: Doing
    for doing in ("receive", "send"):
        cases[doing] = Case(2, beside(a_channel(doing)), LIMITS)
    cases["early"] = Case(3, a_rank_that_is_done_early, LIMITS)
    cases["slow"] = Case(2, a_slow_rank, LIMITS | {"STALL_CEILING": 60.0})
    cases["strangers"] = Case(2, a_post_from_strangers, LIMITS)
    with jobs(tmp_path, cases) as started:
        for ended in started.values():
            all_well(ended)


def a_slow_rank(world: Forked) -> None:
    """A limit follows the slowest micro-batch of any rank, 30 times as long."""
    if world.rank == 0:
        compute(world, 0.2)
    world.heartbeat.tell("other", 0)
    time.sleep(0.5)  # rank 1 hears of it
    if world.rank == 1:
        compute(world, 0.01)
        compute(world, LONG, 5)


def a_post_from_strangers(world: Forked) -> None:
    """A beat of another job, which says that a rank is to blame, and what is no beat."""
    monitor = world.heartbeat._monitor
    assert monitor is not None
    pulse = monitor.pulse
    beat = struct.pack("<Qii", 1, 1, 1).ljust(136, b"\1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as post:
        for data in (beat, beat[:-1], b"", b"x" * 5000):
            post.sendto(data, ("127.0.0.1", pulse.port))
    world.heartbeat.tell("caller", 0)
    time.sleep(0.5)


def test_a_job_that_stood_still_as_a_whole_goes_on(tmp_path: Path) -> None:
    """As in a machine that was asleep, or under a debugger: no rank grew older."""

    def part(world: Forked) -> None:
        compute(world, 0.01)
        world.heartbeat.tell("compute", 5)
        world.mark("computing")
        time.sleep(0.3)
        world.heartbeat.tell("caller", 0)
        time.sleep(0.5)

    with job(tmp_path, Case(3, part, LIMITS)) as ended:
        for rank in range(3):
            ended.seconds_from("computing", rank)
        for process in ended.processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(1.5 * LIMIT)
        for process in ended.processes:
            os.kill(process, signal.SIGCONT)
        all_well(ended)


def tasks() -> int:
    """Threads of this process, those of native code as well."""
    return len(os.listdir("/proc/self/task"))


def test_the_end_leaves_no_thread_behind(tmp_path: Path) -> None:
    def part(world: Forked) -> None:
        before = tasks()
        world.close()
        # The pulse and its listener; the kernel removes them a moment after they were joined.
        assert until(lambda: tasks() == before - 2, PATIENCE)
        assert threading.active_count() == 1
        assert not world.heartbeat.kept
        world.heartbeat.tell("compute", 0)  # of no effect, and no error
        world.heartbeat.waited()
        os._exit(0)

    with job(tmp_path, Case(2, part, LIMITS)) as ended:
        all_well(ended)
