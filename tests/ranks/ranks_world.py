"""Collective calls of the world, and the binding of ranks to cores."""

import os
import threading

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.world import World
from pipepar.errors import InputError, PeerError, PipeparError, PlanError
from pipepar.host.threads import claim_threads, shared_cores_warning
from tests.helpers.rank_fixtures import set_affinity

pytestmark = pytest.mark.mpi


def test_broadcast_returns_the_text_of_rank_0(world: World) -> None:
    assert world.broadcast("grüße" if world.rank == 0 else "not this") == "grüße"
    assert world.broadcast("") == ""


def test_all_gather_returns_all_texts(world: World) -> None:
    texts = world.all_gather("é" * world.rank)
    assert texts == ["é" * rank for rank in range(world.size)]


def test_gather_returns_all_texts_on_one_rank(world: World) -> None:
    for root in range(world.size):
        texts = world.gather("é" * world.rank, root)
        expected = ["é" * rank for rank in range(world.size)]
        assert texts == (expected if world.rank == root else None)


def test_agree_names_the_rank_that_differs(world: World) -> None:
    world.agree("plans", "same")
    if world.size == 1:
        return
    with pytest.raises(PlanError, match=rf"rank 0 and rank {world.size - 1} have made different"):
        world.agree("plans", "other" if world.rank == world.size - 1 else "same")


def test_together_raises_on_the_lowest_rank_that_failed(world: World) -> None:
    def action() -> int:
        if world.rank >= world.size // 2:
            raise InputError("no such file")
        return world.rank

    lowest = world.size // 2
    expected: type[PipeparError] = InputError if world.rank == lowest else PeerError
    with pytest.raises(expected, match="no such file"):
        world.together(action)
    assert world.together(lambda: world.rank) == world.rank


def test_together_accepts_exceptions_of_any_type(world: World) -> None:
    def action() -> None:
        raise FileNotFoundError

    expected = FileNotFoundError if world.rank == 0 else PeerError
    with pytest.raises(expected):
        world.together(action)


def test_ranks_that_mpi_does_not_connect_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.size > 1:
        pytest.skip("MPI connects these ranks")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(PipeparError, match=r"started 4 ranks.*MPI4PY_LIBMPI"):
        World.start()


def test_a_world_can_be_started_again_and_closed_twice() -> None:
    for _ in range(3):
        world = World.start()
        assert (world.rank, world.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
        world.close()
        world.close()


def test_bind_binds_all_threads_and_updates_the_cores_of_every_rank(world: World) -> None:
    cores = world.cores[world.rank]
    mine = cores[world.rank % len(cores)]
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        world.bind(None)
        assert world.cores == dict.fromkeys(range(world.size), cores)
        world.bind([mine])
        assert world.cores == {rank: [cores[rank % len(cores)]] for rank in range(world.size)}
        threads = [int(thread) for thread in os.listdir("/proc/self/task")]
        assert other.native_id in threads
        assert all(os.sched_getaffinity(thread) == {mine} for thread in threads)
        world.bind(cores)  # a thread that has fewer of them keeps those
        assert world.cores[world.rank] == [mine]
    finally:
        done.set()
        other.join()
        set_affinity(cores)
        world.bind(None)


def test_unbound_ranks_divide_the_cores_of_the_host(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert claim_threads(world) == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        cores = len(world.cores[world.rank])
        assert claim_threads(world) == max(1, cores // world.size)
        assert (shared_cores_warning(world) is None) == (world.size <= cores)
    finally:
        torch.set_num_threads(before)
