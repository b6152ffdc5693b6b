"""The channels that a plan and a placement give each rank."""

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
    """A sender that records when it is closed."""

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
    """The in-process channels of all ranks, connected like `World.connect` does."""

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
    """Return a plan with a stage for each pair of inputs and outputs; each letter is a value."""
    return Plan(
        "digest",
        tuple("x"),
        tuple(outputs),
        tuple(
            StagePlan(k, k, k + 1, tuple(inputs), tuple(made), (), 0, 0)
            for k, (inputs, made) in enumerate(stages)
        ),
    )


# Stage 3 needs values of all other stages, stage 2 needs one of stage 0 and none of stage 1.
PLAN = plan_of(("x", "a"), ("a", "b"), ("a", "c"), ("acb", "d"), outputs="db")
FILES = Placement(Ends.of_files(4), (0, 1, 2, 3))
SCRIPT = Placement(Ends.of_script(), (0, 1, 2, 3))
MIXED = Placement(Ends.of_files(5), (2, 0, 4, 1))
"""The first stage is not on the source's rank, the last not on the sink's; rank 3 has no stage."""


def device_context(kinds: str) -> DeviceContext:
    """Return the devices of the ranks: c for a CPU, g for a GPU."""
    by_rank = tuple("cuda" if kind == "g" else "cpu" for kind in kinds)
    return DeviceContext(Devices(by_rank, torch.device("cpu"), "", 1, ""), None)


def run_of(world: World, context: DeviceContext, keeps_spans: bool = False) -> RunContext:
    return RunContext(world, context, 1, Tracer(0, keeps_spans), NO_DISPLAY, lambda: "")


def wired(
    plan: Plan, placement: Placement = FILES, depth: int = 2, kinds: str = "", size: int = 4
) -> tuple[Ranks, list[Wiring]]:
    ranks, context = Ranks(size), device_context(kinds or "c" * size)
    return ranks, [
        wire_up(run_of(ranks.world(rank), context), plan, placement, depth) for rank in range(size)
    ]


def test_an_edge_connects_the_stage_that_computes_a_value_with_those_that_need_it() -> None:
    assert {(e.producer, e.consumer): e.names for e in edges_of(PLAN, FILES, 2)} == {
        (0, 1): ("a",),
        (0, 2): ("a",),
        (0, 3): ("a",),
        (1, 3): ("b",),
        (2, 3): ("c",),
    }


def test_samples_and_columns_come_from_the_nearest_producer_only() -> None:
    assert {(e.producer, e.consumer): e.sends_samples for e in edges_of(PLAN, FILES, 2)} == {
        (0, 1): True,
        (0, 2): True,
        (0, 3): False,
        (1, 3): False,
        (2, 3): True,
    }


def test_values_arrive_in_the_order_of_known() -> None:
    """Each value is its own name, so that the order can be checked."""
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
def test_an_edge_that_skips_stages_is_deeper(depth: int) -> None:
    ranks, _ = wired(PLAN, depth=depth)
    for links in ranks.links.values():
        assert {(each.producer, each.consumer): each.depth for each in links} == {
            (0, 1): depth,
            (0, 2): 2 * depth,
            (0, 3): 3 * depth,
            (1, 3): 2 * depth,
            (2, 3): depth,
        }


def test_all_ranks_have_the_same_links_in_the_same_order() -> None:
    """The id of a channel is its index in that order."""
    ranks, _ = wired(PLAN, SCRIPT)
    for one, other in pairwise(ranks.links.values()):
        assert one == other
    pairs = [(each.producer, each.consumer) for each in ranks.links[0]]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (3, 0)]


def test_results_return_to_the_source_if_it_is_also_the_sink() -> None:
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


def test_no_edge_leads_to_an_end_on_the_same_rank() -> None:
    one = Placement(Ends.of_script(), (0,))
    for plan, placement in ((PLAN, FILES), (plan_of(("x", "a"), outputs="a"), one)):
        ranks, wirings = wired(plan, placement, size=len(plan.stages))
        assert all(each.consumer > each.producer for each in ranks.links[0])
        assert all(wiring.exit is None and wiring.entry is None for wiring in wirings)
        assert wirings[-1].outlets == ()


def test_edges_follow_the_ranks_of_the_placement() -> None:
    """The source's rank sends to the first stage, and the last stage to the sink's rank."""
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


def test_links_between_gpus_form_no_cycle() -> None:
    """A cycle of NCCL transfers could deadlock, so results return to the source on a host."""
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


def test_the_gpu_and_the_watch_are_passed_to_connect() -> None:
    gpu: Any = object()
    ranks, context = Ranks(1), DeviceContext(device_context("g").devices, gpu)
    plan = plan_of(("x", "a"), outputs="a")
    for keeps_spans in (True, False):
        run = run_of(ranks.world(0), context, keeps_spans)
        wire_up(run, plan, Placement(Ends.of_script(), (0,)), 1)
        assert ranks.given == {0: (gpu, run.tracer.record_overlapping if keeps_spans else None)}


def test_senders_are_closed_before_receivers() -> None:
    """A sender must have drained before its peer closes the receiving end."""
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
    ("stages", "depth", "expected"), [(1, 3, 1), (2, 1, 4), (2, 2, 6), (3, 2, 11), (4, 3, 22)]
)
def test_admission_is_what_stages_and_channels_hold(stages: int, depth: int, expected: int) -> None:
    """Each stage computes one micro-batch, and each end of a channel holds `depth`."""
    assert admission(stages, depth) == expected
