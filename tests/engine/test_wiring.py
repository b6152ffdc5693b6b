"""From a plan to each stage's channels: what crosses where, how much fits in, where results go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, cast

import pytest
import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.engine.fault import FAULT
from pipepar.engine.loop import SAMPLES
from pipepar.engine.wiring import Wiring, admission, edges_of, wire_up
from pipepar.host.device_context import DeviceContext
from pipepar.host.devices import Devices
from pipepar.microbatch import MicroBatch
from pipepar.plan.plan import Plan, StagePlan

Pair = tuple[int, int]


class Closing(InprocChannel):
    """A channel that notes when its ends are closed."""

    def __init__(self, depth: int, link: Link, closed: list[Pair]) -> None:
        super().__init__(depth)
        self._pair = (link.producer, link.consumer)
        self._closed = closed

    def close(self) -> None:
        self._closed.append(self._pair)


class Ranks:
    """All ranks' ends of channels between threads, made as `World.connect` makes them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.links: dict[int, list[Link]] = defaultdict(list)
        self.given: dict[int, tuple[Any, Any]] = {}
        self.closed: list[Pair] = []
        self._channels: dict[Pair, Closing] = {}

    def world(self, rank: int) -> World:
        ranks = self

        class One:
            def connect(self, links: Iterable[Link], gpu: Any, watch: Any) -> Any:
                ranks.given[rank] = (gpu, watch)
                ranks.links[rank] = list(links)
                ends = {(link.producer, link.consumer): link for link in ranks.links[rank]}
                for pair, link in ends.items():
                    made = Closing(link.depth, link, ranks.closed)
                    ranks._channels.setdefault(pair, made)
                receivers = {a: ranks._channels[a, b] for a, b in ends if b == rank}
                senders = {b: ranks._channels[a, b] for a, b in ends if a == rank}
                return receivers, senders

        one: Any = One()
        one.rank, one.size = rank, self.size
        return cast("World", one)


def plan_of(*stages: tuple[str, str], outputs: str) -> Plan:
    """A stage for each pair of inputs and outputs, a letter a value."""
    return Plan(
        "digest",
        tuple("x"),
        tuple(outputs),
        tuple(
            StagePlan(k, k, k + 1, tuple(inputs), tuple(made), (), 0, 0)
            for k, (inputs, made) in enumerate(stages)
        ),
    )


# Stage 3 needs what stages 0 and 2 made, stage 2 nothing of stage 1 but that of stage 0.
PLAN = plan_of(("x", "a"), ("a", "b"), ("a", "c"), ("acb", "d"), outputs="db")


def contexts(kinds: str) -> DeviceContext:
    """Which ranks sit at a GPU: a letter each, c or g."""
    by_rank = tuple("cuda" if kind == "g" else "cpu" for kind in kinds)
    return DeviceContext(Devices(by_rank, torch.device("cpu"), "", 1, ""), None)


def wired(
    plan: Plan, depth: int = 2, carried: Iterable[str] = (), to_root: bool = False, kinds: str = ""
) -> tuple[Ranks, list[Wiring]]:
    size = len(plan.stages)
    ranks, context = Ranks(size), contexts(kinds or "c" * size)
    edges = dict(reversed(edges_of(plan, tuple(carried)).items()))
    return ranks, [
        wire_up(ranks.world(rank), plan, edges, depth, to_root, context) for rank in range(size)
    ]


def test_values_cross_from_whoever_made_them() -> None:
    assert edges_of(PLAN) == {
        (0, 1): ("a",),
        (0, 2): ("a",),
        (0, 3): ("a",),
        (1, 3): ("b",),
        (2, 3): ("c",),
    }


def test_what_is_carried_comes_once_from_the_nearest_and_a_fault_from_all() -> None:
    assert edges_of(PLAN, (SAMPLES, FAULT, "#more")) == {
        (0, 1): ("a", FAULT, SAMPLES, "#more"),
        (0, 2): ("a", FAULT, SAMPLES, "#more"),
        (0, 3): ("a", FAULT),
        (1, 3): ("b", FAULT),
        (2, 3): ("c", FAULT, SAMPLES, "#more"),
    }


def test_every_stage_gets_what_its_inlets_name_from_who_sends_it() -> None:
    """Each value carries its name and its producer's number, in the order both sides agreed on."""
    _, wirings = wired(PLAN, carried=(SAMPLES, FAULT))
    for rank, wiring in enumerate(wirings):
        for outlet in wiring.outlets:
            sent = tuple(f"{name} of {rank}" for name in outlet.names)
            outlet.channel.send(MicroBatch(0, sent))
            outlet.channel.end()
    found = {
        rank: sorted(
            str(value)
            for inlet in wiring.inlets
            for microbatch in inlet.channel.receive()
            for name, value in zip(inlet.names, microbatch.values, strict=True)
            if str(value).startswith(f"{name} of ")
        )
        for rank, wiring in enumerate(wirings)
    }
    assert found == {
        0: [],
        1: ["#fault of 0", "#samples of 0", "a of 0"],
        2: ["#fault of 0", "#samples of 0", "a of 0"],
        3: [*(f"#fault of {k}" for k in range(3)), "#samples of 2", "a of 0", "b of 1", "c of 2"],
    }


@pytest.mark.parametrize("depth", [1, 3])
def test_an_edge_that_skips_stages_holds_what_they_hold(depth: int) -> None:
    ranks, _ = wired(PLAN, depth)
    for links in ranks.links.values():
        assert {(each.producer, each.consumer): each.depth for each in links} == {
            (0, 1): depth,
            (0, 2): 2 * depth,
            (0, 3): 3 * depth,
            (1, 3): 2 * depth,
            (2, 3): depth,
        }


def test_every_rank_names_the_links_in_one_order() -> None:
    """Tags are given out in that order."""
    ranks, _ = wired(PLAN, to_root=True)
    for one, other in pairwise(ranks.links.values()):
        assert one == other
    pairs = [(each.producer, each.consumer) for each in ranks.links[0]]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (3, 0)]


def test_results_return_to_rank_0_where_that_is_asked_for() -> None:
    ranks, wirings = wired(PLAN, 2, carried=[SAMPLES], to_root=True)
    back = wirings[3].outlets[-1]
    assert back.names == PLAN.outputs
    assert ranks.links[0][-1].depth == admission(4, 2)
    back.channel.send(MicroBatch(7, (1, 2)))
    back.channel.end()
    results = wirings[0].results
    assert results is not None
    assert list(results.receive()) == [MicroBatch(7, (1, 2))]
    assert wirings[0].inlets == ()
    assert [len(wiring.outlets) for wiring in wirings] == [3, 1, 1, 1]
    assert [wiring.results for wiring in wirings[1:]] == [None] * 3


def test_results_stay_where_they_are_made() -> None:
    for plan, to_root in ((PLAN, False), (plan_of(("x", "a"), outputs="a"), True)):
        ranks, wirings = wired(plan, to_root=to_root)
        assert all(each.consumer > each.producer for each in ranks.links[0])
        assert all(wiring.results is None for wiring in wirings)
        assert wirings[-1].outlets == ()


def test_tensors_lie_where_each_end_computes_and_results_come_back_to_the_host() -> None:
    """A circle of transfers between GPUs could deadlock."""
    ranks, _ = wired(PLAN, to_root=True, kinds="gcgg")
    found = {(e.producer, e.consumer): (e.from_gpu, e.to_gpu) for e in ranks.links[0]}
    assert found == {
        (0, 1): (True, False),
        (0, 2): (True, True),
        (0, 3): (True, True),
        (1, 3): (False, True),
        (2, 3): (True, True),
        (3, 0): (True, False),
    }


def test_the_gpu_and_the_watch_are_handed_on() -> None:
    gpu: Any = object()
    watch: Any = object()
    ranks, context = Ranks(1), DeviceContext(contexts("g").devices, gpu)
    plan = plan_of(("x", "a"), outputs="a")
    wire_up(ranks.world(0), plan, edges_of(plan), 1, True, context, watch)
    assert ranks.given == {0: (gpu, watch)}


def test_all_channels_of_a_stage_are_closed_those_it_sends_by_first() -> None:
    """What was sent must have left before its receiver lets go."""
    ranks, wirings = wired(PLAN, to_root=True)
    for wiring, expected in zip(
        wirings,
        [
            [(0, 1), (0, 2), (0, 3), (3, 0)],
            [(1, 3), (0, 1)],
            [(2, 3), (0, 2)],
            [(3, 0), (0, 3), (1, 3), (2, 3)],
        ],
        strict=True,
    ):
        ranks.closed.clear()
        wiring.close()
        assert ranks.closed == expected


@pytest.mark.parametrize(
    ("stages", "depth", "held"), [(1, 3, 1), (2, 1, 4), (2, 2, 6), (3, 2, 11), (4, 3, 22)]
)
def test_as_many_are_admitted_as_there_is_room_for(stages: int, depth: int, held: int) -> None:
    """Each stage has one in hand, and both ends of each channel hold a depth."""
    assert admission(stages, depth) == held
