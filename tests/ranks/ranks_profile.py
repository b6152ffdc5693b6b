"""What ranks measure together: the same on all, kept for the next time, and made into plans."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pipepar.comm.world import World
from pipepar.errors import PipeparError
from pipepar.host import device_context as seating
from pipepar.host.device_context import DeviceContext
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import cut_table
from pipepar.model.split.operations import distinct, operations_of
from pipepar.planner import profile as profiling
from pipepar.planner.plan_job import measured_choice
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.profile import Profile, take_profile
from pipepar.planner.profile_cache import ProfileCache
from tests.helpers.rank_fixtures import on_ranks
from tests.helpers.run_contexts import run_on_hosts

pytestmark = [pytest.mark.mpi, on_ranks(1, 3)]

LAYERS = 6


def profiled(
    world: World, graph: Graph, sizes: Sequence[int] = (1, 2), *, fresh: bool = False
) -> tuple[Profile, list[str]]:
    notes: list[str] = []
    run = run_on_hosts(world, notes.append)
    found = take_profile(run, graph, cut_table(graph), sizes, fresh=fresh)
    return found, notes


def all_equal(world: World, value: object) -> bool:
    return len(set(world.all_gather(repr(value)))) == 1


def test_a_device_for_each_rank_and_a_link_for_each_pair(world: World, graph: Graph) -> None:
    profile, _ = profiled(world, graph)
    hardware = profile.hardware
    assert all_equal(world, profile)
    assert len(hardware.devices) == world.size
    assert len(hardware.links) == world.size - 1
    for device in hardware.devices:
        assert device.speed > 0
        assert device.memory > 0
        assert device.kind.endswith(", 1 thread")
    for link in hardware.links:
        assert link.latency > 0
        assert 0 < link.bandwidth < float("inf")
    assert list(profile.curve) == [1, 2]
    ((kind, seconds),) = profile.curve[1].items()
    assert kind == hardware.devices[0].kind
    assert len(seconds) == LAYERS
    assert len(set(seconds)) == 1  # layers that are alike take as long
    assert seconds[0] > 0


def test_ranks_of_a_host_share_its_memory(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seating, "free_memory", lambda: 1e9 * (world.rank + 1))
    profile, _ = profiled(world, graph, [1])
    assert [device.memory for device in profile.hardware.devices] == [
        1e9 * (rank + 1) / world.size for rank in range(world.size)
    ]


def kept_by(world: World, graph: Graph) -> ProfileCache:
    work, spread = sum(cut_table(graph).costs), profiling._stage_weight_bytes(graph, world.size)
    return ProfileCache.of(graph, DeviceContext.on_hosts(world).kind, work, spread)


def absurd(world: World, graph: Graph, *sizes: int) -> None:
    """Rank 0 keeps times of a second for everything."""
    kept = kept_by(world, graph)
    if world.rank == 0:
        for size in sizes:
            kept.write(size, [1.0] * len(distinct(operations_of(graph, size))))
    world.together(lambda: None)


def test_what_was_kept_is_used(world: World, graph: Graph, cache: Path) -> None:
    profiled(world, graph)
    files = sorted(file.name for file in cache.iterdir())
    assert files == [kept_by(world, graph).path.name]
    absurd(world, graph, 1, 2)
    again, notes = profiled(world, graph)
    assert notes == []
    assert list(again.curve[1].values()) == [(1.0,) * LAYERS]


def test_what_was_kept_is_measured_again_if_asked(world: World, graph: Graph) -> None:
    absurd(world, graph, 1, 2)
    fresh, _ = profiled(world, graph, fresh=True)
    (seconds,) = fresh.curve[1].values()
    assert 1.0 not in seconds
    later, _ = profiled(world, graph)
    assert later.curve == fresh.curve


def test_ranks_that_know_and_ranks_that_do_not_agree(
    world: World, graph: Graph, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on hosts without a common file system."""
    absurd(world, graph, 1)
    if world.rank:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / str(world.rank)))
    profile, _ = profiled(world, graph, [1])
    assert all_equal(world, profile.curve)


def test_a_size_is_not_tried_where_the_one_before_took_long(world: World, graph: Graph) -> None:
    absurd(world, graph, 1, 2, 4)
    profile, _ = profiled(world, graph, [1, 2, 4])
    assert list(profile.curve) == [1]


def by_rank(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rank 0 is of another kind than all others."""
    kinds = ["odd" if rank == 0 else "even" for rank in range(world.size)]
    monkeypatch.setattr(DeviceContext, "kind", property(lambda context: kinds[world.rank]))
    return kinds


def test_each_kind_of_device_has_its_own_times(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    kinds = by_rank(world, monkeypatch)
    profile, _ = profiled(world, graph)
    assert all_equal(world, profile)
    assert [device.kind for device in profile.hardware.devices] == kinds
    for by_kind in profile.curve.values():
        assert set(by_kind) == set(kinds)
    assert len(list(cache.iterdir())) == len(set(kinds))
    request = PlanRequest(samples=8)
    choice = measured_choice(run_on_hosts(world), graph, cut_table(graph), request)
    assert (choice is not None) == (world.rank == 0)


def test_all_ranks_stop_where_one_kind_takes_long(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_rank(world, monkeypatch)
    absurd(world, graph, 1, 2)  # of rank 0's kind
    profile, _ = profiled(world, graph, [1, 2, 4])
    assert all_equal(world, list(profile.curve))
    assert list(profile.curve) == [1]
    assert profile.curve[1]["odd"] == (1.0,) * LAYERS
    assert 1.0 not in profile.curve[1].get("even", ())


def test_what_cannot_be_kept_is_told_on_rank_0_once(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    by_rank(world, monkeypatch)
    world.together(lambda: cache.write_text("in the way") if world.rank == 0 else None)
    _, notes = profiled(world, graph)
    assert len(notes) == (1 if world.rank == 0 else 0)
    assert all(note.startswith(f"measured times cannot be cached in {cache}") for note in notes)


def test_what_fits_no_rank_is_refused_on_all(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seating, "free_memory", lambda: 100.0)
    with pytest.raises(PipeparError, match="memory of the largest device"):
        measured_choice(run_on_hosts(world, print), graph, cut_table(graph), PlanRequest())


def test_measuring_leaves_random_numbers_alone(world: World, graph: Graph) -> None:
    torch.manual_seed(7)
    profiled(world, graph)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_weights_that_are_here_already_need_no_room(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(spec.nbytes for spec in graph.weights.values())
    # Room for what a micro-batch takes, and for nothing else.
    monkeypatch.setattr(seating, "free_memory", lambda: 1000.0 * world.size)
    run, request = run_on_hosts(world, print), PlanRequest(micro_batch=1)
    whole = measured_choice(run, graph, cut_table(graph), request, held=weights)
    assert (whole is None) == (world.rank > 0)
