"""Slots: every order of execution that their events allow is correct, and each event is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipepar.comm.gpu import slots
from pipepar.comm.gpu.cuda import wait_for_event
from pipepar.comm.gpu.slots import Inbox, Outbox
from tests.helpers.gpu.exchange import Batch, Linked, arrive, case, consume, exchange, produce, same
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.scheduler import Deadlock, Scheduler


@pytest.mark.parametrize("seed", seeds(200))
def test_values_arrive_unchanged(seed: int) -> None:
    sent, found, scheduler = exchange(case(seed))
    scheduler.assert_ordered()
    assert same(sent, found), case(seed)
    assert not scheduler.polled, "no host polls an event"


@pytest.mark.parametrize("seed", seeds(100))
def test_values_arrive_unchanged_through_pinned_memory(seed: int) -> None:
    sent, found, scheduler = exchange(replace(case(seed), staged=True))
    scheduler.assert_ordered()
    assert same(sent, found), case(seed)


def sized(count: int, *sizes: int) -> list[Batch]:
    """Return micro-batches of one tensor, with these sizes repeated."""
    return [[torch.full((sizes[i % len(sizes)],), i, dtype=torch.int64)] for i in range(count)]


class Hop:
    """Two simulated GPUs with slots and a link between them."""

    def __init__(self, out_slots: int, in_slots: int, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.a, self.b = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
        self.outbox, self.inbox = Outbox(self.a, out_slots), Inbox(self.b, in_slots)
        self.link = Linked(self.a, self.b, 0)
        self.ahead = in_slots
        self.found: list[Batch] = []

    def sender(self, sent: list[Batch]) -> Iterator[None]:
        return produce(self.a, self.outbox, self.link, sent)

    def receiver(self, sent: list[Batch]) -> Iterator[None]:
        arriving = arrive(self.b, self.inbox, self.link, sent, self.ahead)
        return consume(self.b, arriving, self.found)

    def enqueue(self, sent: list[Batch]) -> None:
        """Enqueue all work of both hosts."""
        for host in (self.sender(sent), self.receiver(sent)):
            for _ in host:
                pass


@pytest.mark.parametrize("out_slots", [1, 2, 3])
@pytest.mark.parametrize("in_slots", [1, 2, 3])
def test_a_slow_consumer_blocks_the_gpu_of_the_producer_but_no_host(
    out_slots: int, in_slots: int
) -> None:
    hop = Hop(out_slots, in_slots, Scheduler(eagerness=0))
    hop.enqueue(sized(in_slots, 100))
    hop.scheduler.drain()  # all slots have allocated their memory
    hop.found.clear()
    sent = sized(10, 100)
    hop.enqueue(sent)
    waiting = sum(operation.label == "compute" for operation in hop.a.compute.waiting)
    assert waiting == len(sent)
    hop.scheduler.run(held=[hop.b.compute])
    left = sum(operation.label == "compute" for operation in hop.a.compute.waiting)
    # The slots of both sides are full, and the next micro-batch is computed without a slot.
    assert waiting - left == in_slots + out_slots + 1
    assert not hop.found
    hop.scheduler.drain()
    hop.scheduler.assert_ordered()
    assert same(sent, hop.found)
    assert not hop.scheduler.polled


def test_a_slot_reallocates_only_to_grow() -> None:
    inbox = Inbox(SimulatedGpu(Scheduler(), "a"), 1)
    places: list[tuple[int, int]] = []
    for nbytes in (10, 500, 0, 40, 500, 600):
        inbox.post(nbytes, lambda memory, _: places.append((memory.data_ptr(), len(memory))))
        inbox.take()
        inbox.release()
    addresses, sizes = zip(*places, strict=True)
    assert sizes == (10, 500, 0, 40, 500, 600)
    assert addresses[1] == addresses[3] == addresses[4]
    assert len({*addresses} - {0}) == 3


def test_slots_are_taken_and_released_in_order() -> None:
    inbox = Inbox(SimulatedGpu(Scheduler(), "a"), 2)
    posted: list[int] = []
    for _ in range(2):
        inbox.post(8, lambda memory, _: posted.append(memory.data_ptr()))
    assert [inbox.take().data_ptr() for _ in range(2)] == posted
    inbox.release()
    inbox.post(8, lambda memory, _: posted.append(memory.data_ptr()))
    assert posted[2] == posted[0]


@pytest.mark.parametrize("seed", seeds(8))
def test_hosts_in_separate_threads(seed: int) -> None:
    hop = Hop(2, 2, Scheduler(seed))
    sent = sized(20, 10, 700, 30)

    def send() -> None:
        for _ in hop.sender(sent):
            wait_for_event(hop.outbox.last)

    with ThreadPoolExecutor() as threads:
        for done in (threads.submit(send), threads.submit(list, hop.receiver(sent))):
            done.result()
    hop.scheduler.drain()
    hop.scheduler.assert_ordered()
    assert same(sent, hop.found)


def is_ordering(node: ast.stmt) -> bool:
    """Return whether a statement is a wait or a record of an event."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr in ("wait_event", "record")
    )


def ordering_statements(tree: ast.Module) -> list[ast.stmt]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_ordering(node)]


class Without(ast.NodeTransformer):
    """Removes a statement from a program."""

    def __init__(self, statement: ast.stmt) -> None:
        self._statement = statement

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node) if node is self._statement else node


SOURCE = Path(slots.__file__).read_text()
STATEMENTS = [
    f"{node.lineno}: {ast.unparse(node)}" for node in ordering_statements(ast.parse(SOURCE))
]


def test_all_waits_and_records_are_found() -> None:
    assert len(STATEMENTS) == SOURCE.count(".wait_event(") + SOURCE.count(".record(") == 9


@pytest.mark.parametrize(
    "least", [10, pytest.param(30, marks=pytest.mark.full)], ids="{} seeds".format
)
@pytest.mark.parametrize("staged", [False, True], ids=["link", "pinned"])
@pytest.mark.parametrize("index", range(len(STATEMENTS)), ids=STATEMENTS)
def test_removing_one_wait_or_record_causes_races_and_wrong_values(
    index: int, staged: bool, least: int
) -> None:
    tree = ast.parse(SOURCE)
    names: dict[str, Any] = {"__name__": slots.__name__}
    program = Without(ordering_statements(tree)[index]).visit(tree)
    exec(compile(program, slots.__file__, "exec"), names)
    without = SimpleNamespace(**names)
    races, changes, tried = 0, 0, 0
    for seed in range(30):
        if tried >= least and changes:
            break
        tried += 1
        try:
            sent, found, scheduler = exchange(replace(case(seed), staged=staged), without)
        except Deadlock:
            continue
        races += any(fault.startswith("race") for fault in scheduler.faults)
        changes += not same(sent, found)
    assert races > tried / 2, "the checker misses the race"
    assert changes, "no order of execution has changed a value"
