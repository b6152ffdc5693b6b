"""What the ranks agree on."""

import os
import threading

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.world import World
from pipepar.errors import InputError, PeerError, PipeparError, PlanError
from pipepar.host.threads import claim_threads, crowded
from tests.helpers.rank_fixtures import set_affinity

pytestmark = pytest.mark.mpi


def test_everybody_hears_rank_0(world: World) -> None:
    assert world.broadcast("grüße" if world.rank == 0 else "not this") == "grüße"
    assert world.broadcast("") == ""


def test_everybody_hears_everybody(world: World) -> None:
    texts = world.all_gather("é" * world.rank)
    assert texts == ["é" * rank for rank in range(world.size)]


def test_one_rank_hears_everybody(world: World) -> None:
    for root in range(world.size):
        texts = world.gather("é" * world.rank, root)
        expected = ["é" * rank for rank in range(world.size)]
        assert texts == (expected if world.rank == root else None)


def test_a_rank_that_differs_is_named(world: World) -> None:
    world.agree("plans", "same")
    if world.size == 1:
        return
    with pytest.raises(PlanError, match=rf"rank 0 and rank {world.size - 1} have made different"):
        world.agree("plans", "other" if world.rank == world.size - 1 else "same")


def test_a_problem_is_told_once_by_the_lowest_rank_that_has_it(world: World) -> None:
    def action() -> int:
        if world.rank >= world.size // 2:
            raise InputError("no such file")
        return world.rank

    owner = world.size // 2
    expected: type[PipeparError] = InputError if world.rank == owner else PeerError
    with pytest.raises(expected, match="no such file"):
        world.together(action)
    assert world.together(lambda: world.rank) == world.rank


def test_a_problem_of_any_kind_is_told_once(world: World) -> None:
    def action() -> None:
        raise FileNotFoundError

    expected = FileNotFoundError if world.rank == 0 else PeerError
    with pytest.raises(expected):
        world.together(action)


def test_ranks_that_mpi_does_not_know_of_are_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.size > 1:
        pytest.skip("here MPI knows them")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(PipeparError, match=r"started 4 ranks.*MPI4PY_LIBMPI"):
        World.start()


def test_worlds_may_be_started_again_and_closed_twice() -> None:
    for _ in range(3):
        world = World.start()
        assert (world.rank, world.size) == (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
        world.close()
        world.close()


def test_a_rank_is_bound_with_all_its_threads_and_the_others_hear_of_it(world: World) -> None:
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
        world.bind(cores)  # a thread that is bound to less of them stays there
        assert world.cores[world.rank] == [mine]
    finally:
        done.set()
        other.join()
        set_affinity(cores)
        world.bind(None)


def test_a_rank_gets_its_share_of_the_cores(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert claim_threads(world) == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        cores = len(world.cores[world.rank])
        assert claim_threads(world) == max(1, cores // world.size)  # unbound: all share all
        assert (crowded(world) is None) == (world.size <= cores)
    finally:
        torch.set_num_threads(before)
