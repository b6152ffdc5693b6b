"""The watchdog reports nothing while ranks wait, work within their timeouts, or are suspended.

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

from pipepar.trace import Activity
from tests.helpers.cluster.forked import Case, Forked, Job, Part, job, jobs
from tests.helpers.cluster.waiting import until

LIMIT = 1.0
LONG = 2.2 * LIMIT
LIMITS = {"SILENCE": LIMIT, "STALL": LIMIT, "STALL_CEILING": LIMIT}
PATIENCE = 30.0


def compute(world: Forked, seconds: float, microbatch: int = 4) -> None:
    world.heartbeat.set_activity("compute", microbatch)
    time.sleep(seconds)


def assert_succeeds(ended: Job) -> None:
    ended.wait(PATIENCE)
    printed = {rank: ended.stderr(rank) for rank in range(len(ended.processes))}
    assert set(ended.status.values()) == {0}, (ended.status, printed)
    assert not any(printed.values()), printed
    assert not ended.stacks()


def leave(world: Forked) -> None:
    """End normally, without a collective call."""
    world.heartbeat.close()
    world.heartbeat.close()
    os._exit(0)


def end_early(world: Forked) -> None:
    if world.rank != 1:
        world.heartbeat.set_activity("caller", 0)
        time.sleep(LONG)
    leave(world)


def on_rank_0(work: Part) -> Part:
    """Return a function that does some work on rank 0, while rank 1 computes micro-batches."""

    def part(world: Forked) -> None:
        compute(world, 0.01)
        if world.rank == 0:
            work(world)
        else:
            for index in range(int(LONG / 0.1)):
                compute(world, 0.1, index)

    return part


def wait_in_collective(world: Forked) -> None:
    world.heartbeat.set_activity("other", 0)
    with world.heartbeat.waiting():
        time.sleep(LONG)


def wait_in_caller(world: Forked) -> None:
    world.heartbeat.set_activity("caller", 0)
    time.sleep(LONG)


def wait_in_channel(doing: Activity) -> Part:
    def part(world: Forked) -> None:
        world.heartbeat.set_activity(doing, 4)
        for _ in range(int(LONG / 0.05)):
            world.heartbeat.waited()
            time.sleep(0.05)

    return part


def work_with_waits(world: Forked) -> None:
    """Receive weights, for example: the time of the work starts again after each wait."""
    world.heartbeat.set_activity("other", 0)
    for _ in range(4):
        time.sleep(0.6 * LIMIT)
        world.heartbeat.waited()


def compute_twice(world: Forked) -> None:
    compute(world, 0.7 * LIMIT)
    compute(world, 0.7 * LIMIT, 5)


def test_waits_and_slow_work_end_no_job(tmp_path: Path) -> None:
    waits: list[Part] = [wait_in_collective, wait_in_caller, work_with_waits, compute_twice]
    cases = {part.__name__: Case(2, on_rank_0(part), LIMITS) for part in waits}
    doing: Activity
    for doing in ("receive", "send"):
        cases[doing] = Case(2, on_rank_0(wait_in_channel(doing)), LIMITS)
    cases["early"] = Case(3, end_early, LIMITS)
    cases["slow"] = Case(2, compute_slowly, LIMITS | {"STALL_CEILING": 60.0})
    cases["foreign"] = Case(2, receive_foreign_datagrams, LIMITS)
    with jobs(tmp_path, cases) as started:
        for ended in started.values():
            assert_succeeds(ended)


def compute_slowly(world: Forked) -> None:
    """The timeout is 30 times the longest micro-batch of any rank."""
    if world.rank == 0:
        compute(world, 0.2)
    world.heartbeat.set_activity("other", 0)
    time.sleep(0.5)  # rank 1 receives the longest time
    if world.rank == 1:
        compute(world, 0.01)
        compute(world, LONG, 5)


def receive_foreign_datagrams(world: Forked) -> None:
    """Receive a beat of another job, with a verdict, and datagrams that are not beats."""
    monitor = world.heartbeat._monitor
    assert monitor is not None
    pulse = monitor.pulse
    beat = struct.pack("<Qii", 1, 1, 1).ljust(136, b"\1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as post:
        for data in (beat, beat[:-1], b"", b"x" * 5000):
            post.sendto(data, ("127.0.0.1", pulse.port))
    world.heartbeat.set_activity("caller", 0)
    time.sleep(0.5)


def test_a_suspended_job_continues(tmp_path: Path) -> None:
    """Suspended time does not count, as on a host that sleeps or under a debugger."""

    def part(world: Forked) -> None:
        compute(world, 0.01)
        world.heartbeat.set_activity("compute", 5)
        world.mark("computing")
        time.sleep(0.3)
        world.heartbeat.set_activity("caller", 0)
        time.sleep(0.5)

    with job(tmp_path, Case(3, part, LIMITS)) as ended:
        for rank in range(3):
            ended.seconds_from("computing", rank)
        for process in ended.processes:
            os.kill(process, signal.SIGSTOP)
        time.sleep(1.5 * LIMIT)
        for process in ended.processes:
            os.kill(process, signal.SIGCONT)
        assert_succeeds(ended)


def count_threads() -> int:
    """Return the number of threads of this process, including those of native code."""
    return len(os.listdir("/proc/self/task"))


def test_close_ends_all_threads(tmp_path: Path) -> None:
    def part(world: Forked) -> None:
        before = count_threads()
        world.close()
        # The pulse and its listener; the kernel removes them shortly after they were joined.
        assert until(lambda: count_threads() == before - 2, PATIENCE)
        assert threading.active_count() == 1
        assert not world.heartbeat.is_running
        world.heartbeat.set_activity("compute", 0)  # has no effect and raises no error
        world.heartbeat.waited()
        os._exit(0)

    with job(tmp_path, Case(2, part, LIMITS)) as ended:
        assert_succeeds(ended)
