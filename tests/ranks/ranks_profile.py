"""Profiles that ranks measure together: equal on all ranks, cached, and used for plans."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pipepar.comm.world import World
from pipepar.errors import PipeparError
from pipepar.host import device_context
from pipepar.host.device_context import DeviceContext
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import cut_table
from pipepar.model.split.operations import distinct, operations_of
from pipepar.planner import profile as profiling
from pipepar.planner.plan_job import measured_choice
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.profile import Profile, measure_profile
from pipepar.planner.profile_cache import ProfileCache
from tests.helpers.rank_fixtures import all_equal, on_ranks
from tests.helpers.run_contexts import run_on_hosts

pytestmark = [pytest.mark.mpi, on_ranks(1, 3)]

LAYERS = 6


def profiled(
    world: World, graph: Graph, sizes: Sequence[int] = (1, 2), *, fresh: bool = False
) -> tuple[Profile, list[str]]:
    notes: list[str] = []
    run = run_on_hosts(world, notes.append)
    found = measure_profile(run, graph, cut_table(graph), sizes, fresh=fresh)
    return found, notes


def test_a_profile_has_all_devices_and_links(world: World, graph: Graph) -> None:
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
    assert len(set(seconds)) == 1  # equal layers are timed once
    assert seconds[0] > 0


def test_ranks_of_a_host_divide_its_memory(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_context, "free_memory", lambda: 1e9 * (world.rank + 1))
    profile, _ = profiled(world, graph, [1])
    assert [device.memory for device in profile.hardware.devices] == [
        1e9 * (rank + 1) / world.size for rank in range(world.size)
    ]


def cache_of(world: World, graph: Graph) -> ProfileCache:
    work = sum(cut_table(graph).costs)
    weight_bytes = profiling._stage_weight_bytes(graph, world.size)
    return ProfileCache.of(graph, DeviceContext.on_hosts(world).kind, work, weight_bytes)


def cache_one_second(world: World, graph: Graph, *sizes: int) -> None:
    """Store one second for each operation in the cache of rank 0."""
    times = cache_of(world, graph)
    if world.rank == 0:
        for size in sizes:
            times.write(size, [1.0] * len(distinct(operations_of(graph, size))))
    world.together(lambda: None)


def test_cached_times_are_used(world: World, graph: Graph, cache: Path) -> None:
    profiled(world, graph)
    files = sorted(file.name for file in cache.iterdir())
    assert files == [cache_of(world, graph).path.name]
    cache_one_second(world, graph, 1, 2)
    again, notes = profiled(world, graph)
    assert notes == []
    assert list(again.curve[1].values()) == [(1.0,) * LAYERS]


def test_fresh_measures_again_and_replaces_cached_times(world: World, graph: Graph) -> None:
    cache_one_second(world, graph, 1, 2)
    fresh, _ = profiled(world, graph, fresh=True)
    (seconds,) = fresh.curve[1].values()
    assert 1.0 not in seconds
    later, _ = profiled(world, graph)
    assert later.curve == fresh.curve


def test_ranks_with_and_without_cached_times_agree(
    world: World, graph: Graph, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on hosts without a shared file system."""
    cache_one_second(world, graph, 1)
    if world.rank:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache / str(world.rank)))
    profile, _ = profiled(world, graph, [1])
    assert all_equal(world, profile.curve)


def test_larger_sizes_are_skipped_after_a_slow_one(world: World, graph: Graph) -> None:
    cache_one_second(world, graph, 1, 2, 4)
    profile, _ = profiled(world, graph, [1, 2, 4])
    assert list(profile.curve) == [1]


def set_two_kinds(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the device of rank 0 another kind than all others; return the kinds by rank."""
    kinds = ["odd" if rank == 0 else "even" for rank in range(world.size)]
    monkeypatch.setattr(DeviceContext, "kind", property(lambda context: kinds[world.rank]))
    return kinds


def test_each_kind_of_device_has_its_own_times(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    kinds = set_two_kinds(world, monkeypatch)
    profile, _ = profiled(world, graph)
    assert all_equal(world, profile)
    assert [device.kind for device in profile.hardware.devices] == kinds
    for by_kind in profile.curve.values():
        assert set(by_kind) == set(kinds)
    assert len(list(cache.iterdir())) == len(set(kinds))
    request = PlanRequest(samples=8)
    choice = measured_choice(run_on_hosts(world), graph, cut_table(graph), request)
    assert (choice is not None) == (world.rank == 0)


def test_larger_sizes_are_skipped_after_one_kind_is_slow(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_two_kinds(world, monkeypatch)
    cache_one_second(world, graph, 1, 2)  # for the kind of rank 0
    profile, _ = profiled(world, graph, [1, 2, 4])
    assert all_equal(world, list(profile.curve))
    assert list(profile.curve) == [1]
    assert profile.curve[1]["odd"] == (1.0,) * LAYERS
    assert 1.0 not in profile.curve[1].get("even", ())


def test_a_cache_that_cannot_be_written_is_reported_once_on_rank_0(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    set_two_kinds(world, monkeypatch)
    world.together(lambda: cache.write_text("in the way") if world.rank == 0 else None)
    _, notes = profiled(world, graph)
    assert len(notes) == (1 if world.rank == 0 else 0)
    assert all(note.startswith(f"measured times cannot be cached in {cache}") for note in notes)


def test_a_model_that_fits_no_rank_is_refused_on_all(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_context, "free_memory", lambda: 100.0)
    with pytest.raises(PipeparError, match="memory of the largest device"):
        measured_choice(run_on_hosts(world, print), graph, cut_table(graph), PlanRequest())


def test_measuring_does_not_change_the_random_generator(world: World, graph: Graph) -> None:
    torch.manual_seed(7)
    profiled(world, graph)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_weights_that_are_in_memory_do_not_count_again(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(spec.nbytes for spec in graph.weights.values())
    # Enough for a micro-batch, but not for the weights.
    monkeypatch.setattr(device_context, "free_memory", lambda: 1000.0 * world.size)
    run, request = run_on_hosts(world, print), PlanRequest(micro_batch=1)
    whole = measured_choice(run, graph, cut_table(graph), request, held=weights)
    assert (whole is None) == (world.rank > 0)
