"""What ranks measure together: the same on all, kept for the next time, and made into plans."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.errors import PipeparError
from pipepar.model.capture import capture
from pipepar.model.crossing import cut_table
from pipepar.model.graph import Graph
from pipepar.model.operations import distinct, operations_of
from pipepar.model.source import from_module
from pipepar.pipeline import Pipeline
from pipepar.plan.plan import Plan
from pipepar.runtime import profile as profiling
from pipepar.runtime.agreement import agree_on_plan, measured_choice
from pipepar.runtime.assembly import assemble
from pipepar.runtime.choice import DEPTH, MICRO_BATCH, Wish
from pipepar.runtime.fixed import fixed_batch
from pipepar.runtime.kept import Kept
from pipepar.runtime.planning import make_plan
from pipepar.runtime.profile import Profile, take_profile
from tests.zoo import ByRow

pytestmark = pytest.mark.mpi

LAYERS = 6


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for all ranks, new for each test."""
    world = World.start()
    path = Path(world.broadcast(str(tmp_path_factory.mktemp("cache"))))
    world.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "pipepar"


@pytest.fixture
def graph() -> Graph:
    return capture(model(), (torch.randn(4, 8),), {})


def model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(LAYERS))).eval()


def profiled(
    world: World, graph: Graph, sizes: Sequence[int] = (1, 2), *, fresh: bool = False
) -> tuple[Profile, list[str]]:
    notes: list[str] = []
    table = cut_table(graph)
    found = take_profile(world, graph, table, sizes, fresh=fresh, note=notes.append)
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
    monkeypatch.setattr(profiling, "free_memory", lambda: 1e9 * (world.rank + 1))
    profile, _ = profiled(world, graph, [1])
    assert [device.memory for device in profile.hardware.devices] == [
        1e9 * (rank + 1) / world.size for rank in range(world.size)
    ]


def kept_by(world: World, graph: Graph) -> Kept:
    work, spread = sum(cut_table(graph).costs), profiling._spread(graph, world.size)
    return Kept.of(graph, profiling._kind(), work, spread)


def absurd(world: World, graph: Graph, *sizes: int) -> None:
    """Rank 0 keeps times of a second for everything."""
    world.together(lambda: None)
    if world.rank == 0:
        for size in sizes:
            kept_by(world, graph).write(size, [1.0] * len(distinct(operations_of(graph, size))))
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
    monkeypatch.setattr(profiling, "_kind", lambda: kinds[world.rank])
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
    choice = measured_choice(world, graph, Wish(samples=8), lambda text: None)
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
    assert all(note.startswith(f"measured times cannot be kept in {cache}") for note in notes)


def micro_batches(size: int, total: int) -> Iterator[slice]:
    return (slice(begin, begin + size) for begin in range(0, total, size))


def assert_equals_the_unsplit(pipe: Pipeline, whole: nn.Module, x: torch.Tensor) -> None:
    found = pipe(x)
    if pipe.rank == 0:
        with torch.no_grad():
            parts = [whole(x[part]) for part in micro_batches(pipe.micro_batch, len(x))]
        assert torch.equal(found, torch.cat(parts))
    else:
        assert found is None


def test_a_measured_pipeline_gives_the_same_numbers(world: World) -> None:
    x = torch.randn(40, 8)
    with Pipeline(model(), example_args=(x,)) as pipe:
        assert pipe.micro_batch in Wish(40).sizes(None)
        assert all_equal(world, pipe.micro_batch)
        assert all_equal(world, pipe._assembly.plan.digest)
        assert_equals_the_unsplit(pipe, model(), x)
        assert_equals_the_unsplit(pipe, model(), torch.randn(3, 8))


def test_a_model_of_one_batch_gets_that(world: World) -> None:
    torch.manual_seed(6)
    whole, x = ByRow().eval(), torch.randn(6, 8)
    told = pytest.warns(UserWarning, match=r"x must be \[6, ") if world.rank == 0 else nullcontext()
    with told, Pipeline(whole, example_args=(x,)) as pipe:
        assert pipe.micro_batch == fixed_batch(pipe._assembly.graph) == 6
        assert_equals_the_unsplit(pipe, whole, x)


def test_the_assembly_has_the_plan_of_rank_0(world: World) -> None:
    source = from_module(model())
    wish = Wish(samples=100)
    assembly = assemble(world, source, (torch.randn(4, 8),), {}, wish=wish)
    assembly.wiring.close()
    agreed = assembly.agreed
    assert all_equal(world, agreed.plan.to_json())
    assert len(agreed.plan.stages) == world.size
    assert (agreed.plan.micro_batch, agreed.plan.depth) == (agreed.micro_batch, agreed.depth)
    assert agreed.micro_batch in wish.sizes(None)
    assert (agreed.choice is not None) == (world.rank == 0)


@pytest.mark.parametrize(
    ("planned", "wish", "expected"),
    [
        ((3, 5), Wish(), (3, 5)),
        ((3, None), Wish(), (3, DEPTH)),
        ((None, None), Wish(), (MICRO_BATCH, DEPTH)),
        ((3, 5), Wish(micro_batch=7), (7, 5)),
        ((3, 5), Wish(depth=1), (3, 1)),
    ],
)
def test_a_plan_that_is_given_is_used(
    world: World,
    graph: Graph,
    planned: tuple[int | None, int | None],
    wish: Wish,
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(*given: Any, **named: Any) -> None:
        raise AssertionError("a given plan needs no measuring")

    monkeypatch.setattr(profiling, "measure_links", measure)
    content = json.loads(make_plan(graph, world.size).to_json())
    content |= {"micro_batch": planned[0], "depth": planned[1]}
    given = Plan.from_json(json.dumps(content))
    # Ranks other than 0 have not read it.
    agreed = agree_on_plan(world, graph, given if world.rank == 0 else None, wish, print)
    assert (agreed.micro_batch, agreed.depth) == expected
    assert agreed.plan.stages == given.stages
    assert agreed.choice is None


def test_a_plan_for_another_number_of_ranks_is_refused_on_all(world: World, graph: Graph) -> None:
    given = make_plan(graph, world.size + 1)
    with pytest.raises(PipeparError, match=f"the job has {world.size}"):
        agree_on_plan(world, graph, given if world.rank == 0 else None, Wish(), print)


def test_what_fits_no_rank_is_refused_on_all(
    world: World, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "free_memory", lambda: 100.0)
    with pytest.raises(PipeparError, match="memory of the largest device"):
        measured_choice(world, graph, Wish(), print)


class Total(nn.Module):
    """One row for all that is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0)


def test_a_model_that_joins_its_rows_gets_all_of_them(world: World) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    layers = [*(nn.Linear(4, 4) for _ in range(world.size)), Total()]
    whole = nn.Sequential(*layers).eval()
    for parameter in whole.parameters():
        nn.init.constant_(parameter, 0.5)
    with Pipeline(whole, example_args=(x,)) as pipe, torch.no_grad():
        assert pipe.micro_batch == 8
        result = pipe(x)
        assert world.rank or torch.equal(result, whole(x))


def test_examples_of_other_sizes_on_other_ranks(world: World) -> None:
    with Pipeline(model(), example_args=(torch.zeros(256 if world.rank == 0 else 8, 8),)) as pipe:
        assert all_equal(world, pipe.micro_batch)


def test_an_example_without_rows(world: World) -> None:
    with Pipeline(model(), example_args=(torch.zeros(0, 8),)) as pipe:
        result = pipe(torch.ones(5, 8))
        assert world.rank or len(result) == 5


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
    monkeypatch.setattr(profiling, "free_memory", lambda: 1000.0 * world.size)
    whole = measured_choice(world, graph, Wish(micro_batch=1), print, held=weights)
    assert (whole is None) == (world.rank > 0)
