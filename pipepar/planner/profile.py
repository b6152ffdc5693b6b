"""What a plan is made of, measured on the ranks that will run it.

The time of a model's operations on each kind of device is kept from job to job. How fast each rank
is just now, what memory it has free and how fast its links are is measured every time: another job
may share its host today.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import torch

from pipepar.comm.channels.memory import return_freed_memory
from pipepar.comm.world import World
from pipepar.host.link_speed import measure_links
from pipepar.host.run_context import RunContext
from pipepar.model.capture.graph import Graph
from pipepar.model.split.crossing import CutTable
from pipepar.model.split.operations import Operation, distinct, operations_of
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Neighbours
from pipepar.planner.op_benchmark import OpBenchmark
from pipepar.planner.profile_cache import ProfileCache, Times

Seconds = Mapping[str, tuple[float, ...]]
"""By kind of device, seconds of each of the graph's compute nodes."""

# A micro-batch twice as large is worth trying while its samples take less time by this share.
_GAIN: Final = 0.05
# Nor are larger ones tried once the operations that differ take so many seconds.
_LONGEST: Final = 0.5
# Seconds for an operation's unit of work where not a single one can be timed.
_UNTIMED: Final = 1e-9
# Of a rank's memory, what a single operation may take while it is timed.
_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Profile:
    """A job's ranks and links, and the model on them."""

    hardware: Neighbours
    """A device's speed is 1 where it takes the times below, less where it is slower just now."""
    curve: Mapping[int, Seconds]
    """By size of micro-batch, ascending; at least one."""


def take_profile(
    run: RunContext,
    graph: Graph,
    table: CutTable,
    sizes: Iterable[int],
    held: float = 0.0,
    fresh: bool = False,
) -> Profile:
    """Measure what the ranks and links of a job can do. *Collective.*

    Args:
        run: rank 0 shows a remark if the times cannot be kept.
        graph: the captured model.
        table: its counted costs, for what cannot be timed by itself.
        sizes: of micro-batches, ascending; those that cannot be better than the one before are
            left out.
        held: bytes of the model's weights that this rank has in memory already.
        fresh: whether to measure what is kept from earlier jobs again.

    Returns:
        The same on every rank.

    Raises:
        PeerError: another rank failed.
    """
    world, context = run.world, run.device_context
    # Before the times: connecting settles how memory is handled, and so how long it takes.
    links = tuple(LinkCost(link.latency, link.bandwidth) for link in measure_links(world, context))
    mine = context.kind
    room = held + context.room
    ranks = [_Rank(*json.loads(text)) for text in world.all_gather(json.dumps([mine, room]))]
    spread = _spread(graph, world.size)
    kept = ProfileCache.of(graph, mine, sum(table.costs), spread)
    subject = _Subject(graph, table, kept, spread, room * _SHARE, context.device)
    drawn_on = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(drawn_on):  # a script's own random numbers stay what they were
        curve, paces = _measured(run, [rank.kind for rank in ranks], subject, sizes, fresh)
    # The stage's weights come next, and what NCCL needs.
    return_freed_memory()
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
    devices = (
        DeviceCost(pace, rank.room, rank.kind) for pace, rank in zip(paces, ranks, strict=True)
    )
    return Profile(Neighbours(tuple(devices), links), curve)


def _measured(
    run: RunContext,
    kinds: Sequence[str],
    subject: _Subject,
    sizes: Iterable[int],
    fresh: bool,
) -> tuple[dict[int, Seconds], list[float]]:
    """The curve, and every rank's pace."""
    world = run.world
    curve: dict[int, Seconds] = {}
    problem = ""
    for size in sizes:
        sized = world.together(partial(_Sized, subject, size))
        times, to_keep = _times(world, kinds, sized, fresh)
        problem = problem or (_keep(sized, times[kinds[world.rank]]) if to_keep else "")
        if not any(map(_total, times.values())):
            problem = "not one operation of this model can be timed by itself: all are counted"
        curve[size] = {kind: sized.by_node(known) for kind, known in times.items()}
        # Of all kinds, so that all ranks stop here.
        if not _worth_more(curve) or max(map(_total, times.values())) > _LONGEST:
            break
    problems = dict.fromkeys(world.all_gather(problem))
    for text in filter(None, problems if world.is_root else ()):
        run.display.note(text)
    return curve, _paces(world, sized, times[kinds[world.rank]])


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one rank computes with."""

    kind: str
    """What its device is called, with its threads."""
    room: float
    """Bytes that a stage may take there."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured."""

    graph: Graph
    table: CutTable
    kept: ProfileCache
    spread: int
    room: float
    device: torch.device


class _Sized:
    """The model for one size of micro-batch."""

    def __init__(self, subject: _Subject, size: int) -> None:
        self.size = size
        self.kept = subject.kept
        self._subject = subject
        self._operations = operations_of(subject.graph, size)
        self.distinct: Sequence[Operation] = distinct(self._operations)
        self._counts = Counter(each.signature for each in self._operations.values())

    @cached_property
    def bench(self) -> OpBenchmark:
        """The distinct operations, ready to be computed."""
        subject = self._subject
        return OpBenchmark(self.distinct, subject.device, subject.spread, subject.room)

    def pace(self, times: Times) -> float:
        """How fast this rank is now, by operations in the proportions of the model."""
        return self.bench.pace(times, [self._counts[each.signature] for each in self.distinct])

    def by_node(self, times: Times) -> tuple[float, ...]:
        """Seconds of each node; what was not timed is reckoned by what was counted of it."""
        nodes, work = self._subject.graph.nodes, self._subject.table.costs
        known = dict(zip((each.signature for each in self.distinct), times, strict=True))
        timed = [
            known[self._operations[node].signature] if node in self._operations else None
            for node in nodes
        ]
        done = sum(w for w, seconds in zip(work, timed, strict=True) if seconds is not None)
        rate = sum(seconds or 0.0 for seconds in timed) / done if done else _UNTIMED
        return tuple(
            w * rate if seconds is None else seconds for w, seconds in zip(work, timed, strict=True)
        )


def _times(
    world: World, kinds: Sequence[str], sized: _Sized, fresh: bool
) -> tuple[dict[str, Times], bool]:
    """By kind, the shortest of its ranks': how far each is from that, its pace will tell.

    And whether this rank is to keep those of its own kind.
    """
    kind = kinds[world.rank]
    known = None if fresh else sized.kept.read(sized.size, len(sized.distinct))
    own = world.together(lambda: sized.bench.medians() if known is None else known)
    texts = world.all_gather(json.dumps([known is None, list(own)]))
    parts = [(of, *json.loads(text)) for of, text in zip(kinds, texts, strict=True)]
    times = {of: _shortest([own for other, _, own in parts if other == of]) for of in kinds}
    measured = any(new for other, new, _ in parts if other == kind)
    # On each host, since they may not share a file system.
    alike = zip(kinds, world.hosts, strict=True)
    first = list(alike).index((kind, world.host)) == world.rank
    return times, measured and first


def _keep(sized: _Sized, times: Times) -> str:
    """Keep what was measured; the problem if that cannot be."""
    try:
        sized.kept.write(sized.size, times)
    except OSError as error:
        return f"measured times cannot be kept in {sized.kept.path.parent}: {error.strerror}"
    return ""


def _shortest(rows: Sequence[Times]) -> Times:
    return [
        min((seconds for seconds in column if seconds is not None), default=None)
        for column in zip(*rows, strict=True)
    ]


def _worth_more(curve: Mapping[int, Seconds]) -> bool:
    """Whether the last size has gained enough over the one before for a larger one to be tried."""
    if len(curve) < 2:
        return True
    (small, before), (large, last) = list(curve.items())[-2:]
    return any(sum(last[kind]) / large < (1 - _GAIN) * sum(before[kind]) / small for kind in last)


def _total(times: Times) -> float:
    return sum(seconds or 0.0 for seconds in times)


def _paces(world: World, sized: _Sized, times: Times) -> list[float]:
    """Every rank's, measured while all ranks are busy; one alone is as fast as it was."""
    if world.size == 1:
        return [1.0]
    world.together(lambda: sized.bench)  # and all begin together
    return [float(text) for text in world.all_gather(repr(sized.pace(times)))]


def _spread(graph: Graph, stages: int) -> int:
    """Bytes of weights that a stage has, about."""
    return sum(spec.nbytes for spec in set(graph.weights.values())) // stages
