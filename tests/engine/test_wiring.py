"""From a plan and its placement to the channels of each rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
import torch

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.inproc import InprocChannel, InprocReceiver, InprocSender
from pipepar.comm.channels.link import Link
from pipepar.comm.world import World
from pipepar.engine.wiring import Node, Wiring, admission, edges_of, wire_up
from pipepar.host.device_context import DeviceContext
from pipepar.host.devices import Devices
from pipepar.host.run_context import RunContext
from pipepar.microbatch import MicroBatch
from pipepar.plan.placement import Ends, Placement
from pipepar.plan.plan import Plan, StagePlan
from pipepar.progress import NO_DISPLAY
from pipepar.trace import Tracer

Pair = tuple[int, int]


class ClosingSender(InprocSender):
    """An end that notes when it is closed."""

    def __init__(self, channel: InprocChannel, pair: Pair, closed: list[Pair]) -> None:
        super().__init__(channel)
        self._pair, self._closed = pair, closed

    def close(self) -> None:
        self._closed.append(self._pair)


class ClosingReceiver(InprocReceiver):
    def __init__(self, channel: InprocChannel, pair: Pair, closed: list[Pair]) -> None:
        super().__init__(channel)
        self._pair, self._closed = pair, closed

    def close(self) -> None:
        self._closed.append(self._pair)


class Ranks:
    """All ranks' ends of channels between threads, made as `World.connect` makes them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.links: dict[int, list[Link]] = defaultdict(list)
        self.given: dict[int, tuple[Any, Any]] = {}
        self.closed: list[Pair] = []
        self._channels: dict[int, InprocChannel] = {}

    def world(self, rank: int) -> World:
        ranks = self

        class One:
            def connect(
                self, links: Sequence[Link], gpu: Any, watch: Any
            ) -> tuple[dict[int, Receiver], dict[int, Sender]]:
                ranks.given[rank] = (gpu, watch)
                ranks.links[rank] = list(links)
                receivers: dict[int, Receiver] = {}
                senders: dict[int, Sender] = {}
                for at, link in enumerate(links):
                    channel = ranks._channels.setdefault(at, InprocChannel(link.depth))
                    pair = link.producer, link.consumer
                    if link.consumer == rank:
                        receivers[at] = ClosingReceiver(channel, pair, ranks.closed)
                    if link.producer == rank:
                        senders[at] = ClosingSender(channel, pair, ranks.closed)
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
FILES = Placement(Ends.of_files(4), (0, 1, 2, 3))
SCRIPT = Placement(Ends.of_script(), (0, 1, 2, 3))
MIXED = Placement(Ends.of_files(5), (2, 0, 4, 1))
"""Neither the first nor the last stage is where its end is, and rank 3 has no stage."""


def contexts(kinds: str) -> DeviceContext:
    """Which ranks have a GPU: a letter each, c or g."""
    by_rank = tuple("cuda" if kind == "g" else "cpu" for kind in kinds)
    return DeviceContext(Devices(by_rank, torch.device("cpu"), "", 1, ""), None)


def run_of(world: World, context: DeviceContext, keeps_spans: bool = False) -> RunContext:
    return RunContext(world, context, 1, Tracer(0, keeps_spans), NO_DISPLAY, lambda: "")


def wired(
    plan: Plan, placement: Placement = FILES, depth: int = 2, kinds: str = "", size: int = 4
) -> tuple[Ranks, list[Wiring]]:
    ranks, context = Ranks(size), contexts(kinds or "c" * size)
    return ranks, [
        wire_up(run_of(ranks.world(rank), context), plan, placement, depth) for rank in range(size)
    ]


def test_values_cross_from_whoever_made_them() -> None:
    assert {(e.producer, e.consumer): e.names for e in edges_of(PLAN, FILES, 2)} == {
        (0, 1): ("a",),
        (0, 2): ("a",),
        (0, 3): ("a",),
        (1, 3): ("b",),
        (2, 3): ("c",),
    }


def test_samples_and_columns_come_once_from_the_nearest() -> None:
    assert {(e.producer, e.consumer): e.sends_samples for e in edges_of(PLAN, FILES, 2)} == {
        (0, 1): True,
        (0, 2): True,
        (0, 3): False,
        (1, 3): False,
        (2, 3): True,
    }


def test_every_stage_gets_the_values_that_it_knows_in_their_order() -> None:
    """Each value is its own name, so that the order of what arrives can be seen."""
    _, wirings = wired(PLAN)
    samples = torch.tensor([7])
    column = {"label": torch.tensor([1])}
    for wiring in wirings:
        for outlet in wiring.outlets:
            outlet.send(MicroBatch(0, wiring.known, samples, column), 0)
            outlet.channel.end()
    for rank, wiring in enumerate(wirings):
        found = [each for inlet in wiring.inlets for each in inlet.receive()]
        arriving = tuple(value for each in found for value in each.values)
        assert (arriving or PLAN.inputs) + PLAN.stages[rank].outputs == wiring.known
        assert sum(each.samples is not None for each in found) == min(rank, 1)
        assert sum("label" in each.columns for each in found) == min(rank, 1)
        assert set(PLAN.stages[rank].inputs) <= set(wiring.known)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_edge_that_skips_stages_holds_what_they_hold(depth: int) -> None:
    ranks, _ = wired(PLAN, depth=depth)
    for links in ranks.links.values():
        assert {(each.producer, each.consumer): each.depth for each in links} == {
            (0, 1): depth,
            (0, 2): 2 * depth,
            (0, 3): 3 * depth,
            (1, 3): 2 * depth,
            (2, 3): depth,
        }


def test_every_rank_names_the_links_in_one_order() -> None:
    """The id of a channel is its place in that order."""
    ranks, _ = wired(PLAN, SCRIPT)
    for one, other in pairwise(ranks.links.values()):
        assert one == other
    pairs = [(each.producer, each.consumer) for each in ranks.links[0]]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (3, 0)]


def test_results_return_to_the_source_where_that_is_the_sink() -> None:
    ranks, wirings = wired(PLAN, SCRIPT)
    back = wirings[3].outlets[-1]
    assert back.names == PLAN.outputs
    assert back.positions == wirings[3].positions(PLAN.outputs)
    assert ranks.links[0][-1].depth == admission(4, 2)
    back.channel.send(MicroBatch(7, (1, 2)))
    back.channel.end()
    results = wirings[0].exit
    assert results is not None
    assert list(results.receive()) == [MicroBatch(7, (1, 2))]
    assert wirings[0].inlets == ()
    assert [len(wiring.outlets) for wiring in wirings] == [3, 1, 1, 1]
    assert [wiring.exit for wiring in wirings[1:]] == [None] * 3


def test_results_stay_where_they_are_made() -> None:
    one = Placement(Ends.of_script(), (0,))
    for plan, placement in ((PLAN, FILES), (plan_of(("x", "a"), outputs="a"), one)):
        ranks, wirings = wired(plan, placement, size=len(plan.stages))
        assert all(each.consumer > each.producer for each in ranks.links[0])
        assert all(wiring.exit is None and wiring.entry is None for wiring in wirings)
        assert wirings[-1].outlets == ()


def test_a_stage_runs_on_the_rank_that_the_placement_names() -> None:
    """Channels lead from the source to the first stage and from the last stage to the sink."""
    ranks, wirings = wired(PLAN, MIXED, size=5)
    found = [(each.producer, each.consumer, each.depth) for each in ranks.links[3]]
    assert found == [(2, 0, 2), (2, 4, 4), (2, 1, 6), (0, 1, 4), (4, 1, 2), (0, 2, 2), (1, 4, 2)]
    assert [len(wiring.inlets) for wiring in wirings] == [1, 3, 1, 0, 1]
    assert [len(wiring.outlets) for wiring in wirings] == [1, 1, 3, 0, 1]
    assert [wiring.entry is not None for wiring in wirings] == [True, *[False] * 4]
    assert [wiring.exit is not None for wiring in wirings] == [*[False] * 4, True]
    assert wirings[3].known == ()
    entry = wirings[0].entry
    assert entry is not None
    entry.send(MicroBatch(0, ("x",), torch.tensor([3])), "source")
    (arrived,) = [next(inlet.receive()) for inlet in wirings[2].inlets]
    assert (arrived.values, arrived.samples) == (("x",), torch.tensor([3]))


def test_tensors_lie_where_each_end_computes_and_results_come_back_to_the_host() -> None:
    """A circle of transfers between GPUs could deadlock."""
    ranks, _ = wired(PLAN, SCRIPT, kinds="gcgg")
    found = {(e.producer, e.consumer): (e.from_gpu, e.to_gpu) for e in ranks.links[0]}
    assert found == {
        (0, 1): (True, False),
        (0, 2): (True, True),
        (0, 3): (True, True),
        (1, 3): (False, True),
        (2, 3): (True, True),
        (3, 0): (True, False),
    }


def test_the_source_and_the_sink_are_on_hosts() -> None:
    ranks, _ = wired(PLAN, MIXED, kinds="ggggg", size=5)
    entry, leave = ranks.links[0][-2:]
    assert (entry.from_gpu, entry.to_gpu) == (False, True)
    assert (leave.from_gpu, leave.to_gpu) == (True, False)


def test_the_gpu_and_the_watch_are_handed_on() -> None:
    gpu: Any = object()
    ranks, context = Ranks(1), DeviceContext(contexts("g").devices, gpu)
    plan = plan_of(("x", "a"), outputs="a")
    for keeps_spans in (True, False):
        run = run_of(ranks.world(0), context, keeps_spans)
        wire_up(run, plan, Placement(Ends.of_script(), (0,)), 1)
        assert ranks.given == {0: (gpu, run.tracer.record_beside if keeps_spans else None)}


def test_all_channels_of_a_stage_are_closed_those_it_sends_by_first() -> None:
    """What was sent must have left before its receiver lets go."""
    ranks, wirings = wired(PLAN, SCRIPT)
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


def test_a_node_is_a_stage_or_an_end() -> None:
    nodes = set[Node]()
    for edge in edges_of(PLAN, MIXED, 1):
        nodes |= {edge.producer, edge.consumer}
    assert nodes == {"source", 0, 1, 2, 3, "sink"}


@pytest.mark.parametrize(
    ("stages", "depth", "held"), [(1, 3, 1), (2, 1, 4), (2, 2, 6), (3, 2, 11), (4, 3, 22)]
)
def test_as_many_are_admitted_as_there_is_room_for(stages: int, depth: int, held: int) -> None:
    """Each stage has one in hand, and both ends of each channel hold a depth."""
    assert admission(stages, depth) == held
