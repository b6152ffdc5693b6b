"""The measurements for a plan, taken on the ranks that will run it.

The times of the operations of a model are cached from job to job, for each kind of device. The
pace, the free memory and the links of the ranks are measured in every job, since another job may
use the same host.
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
"""Seconds of each compute node of the graph, by kind of device."""

# A larger micro-batch is tried only if the last one reduced the time of a sample by this share.
_GAIN: Final = 0.05
# It is not tried if the distinct operations of the last one together took more seconds than this.
_LONGEST: Final = 0.5
# Seconds per unit of counted work if no operation can be timed.
_UNTIMED: Final = 1e-9
# The share of the memory of a rank that one operation may take while it is timed.
_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Profile:
    """The measured ranks and links of a job, and the measured times of the model."""

    hardware: Neighbours
    """The devices and links; the speed of a device is its pace, relative to `curve`."""
    curve: Mapping[int, Seconds]
    """The times by size of micro-batch, ascending; at least one."""


def measure_profile(
    run: RunContext,
    graph: Graph,
    table: CutTable,
    sizes: Iterable[int],
    held: float = 0.0,
    fresh: bool = False,
) -> Profile:
    """Measure the ranks and links of a job, and the model on them. *Collective.*

    Args:
        run: all ranks, and their devices; rank 0 displays a note if the times cannot be cached, or
            if no operation can be timed.
        graph: the captured model.
        table: its counted costs, for operations that cannot be timed.
        sizes: sizes of micro-batch, ascending; measuring ends when a larger size gains too little
            or takes too long.
        held: bytes of the weights of the model that this rank already has in memory.
        fresh: whether to measure again the times that earlier jobs have cached.

    Returns:
        The measurements, the same on every rank.

    Raises:
        PeerError: another rank failed.
    """
    world, context = run.world, run.device_context
    # Links come first: connecting changes the memory allocator, and so the times of operations.
    links = tuple(LinkCost(link.latency, link.bandwidth) for link in measure_links(world, context))
    mine = context.kind
    room = held + context.room
    ranks = [_Rank(*json.loads(text)) for text in world.all_gather(json.dumps([mine, room]))]
    weight_bytes = _stage_weight_bytes(graph, world.size)
    cache = ProfileCache.of(graph, mine, sum(table.costs), weight_bytes)
    subject = _Subject(graph, table, cache, weight_bytes, room * _SHARE, context.device)
    gpus = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):  # keep the random state of the script
        curve, paces = _measured(run, [rank.kind for rank in ranks], subject, sizes, fresh)
    # The weights of the stage and NCCL need the memory next.
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
    """Return the times by size of micro-batch, and the pace of every rank. *Collective.*

    Also caches new times, and displays problems on rank 0.
    """
    world = run.world
    curve: dict[int, Seconds] = {}
    problem = ""
    for size in sizes:
        sized = world.together(partial(_Sized, subject, size))
        times, to_store = _times(world, kinds, sized, fresh)
        problem = problem or (_store(sized, times[kinds[world.rank]]) if to_store else "")
        if not any(map(_total, times.values())):
            problem = "no operation of this model can be timed: all are counted"
        curve[size] = {kind: sized.by_node(known) for kind, known in times.items()}
        # Decided by the times of all kinds, so that all ranks stop at the same size.
        if not _worth_more(curve) or max(map(_total, times.values())) > _LONGEST:
            break
    problems = dict.fromkeys(world.all_gather(problem))
    for text in filter(None, problems if world.is_root else ()):
        run.display.note(text)
    return curve, _paces(world, sized, times[kinds[world.rank]])


@dataclass(frozen=True, slots=True)
class _Rank:
    """The device of one rank."""

    kind: str
    """The name of its device, with its number of threads."""
    room: float
    """Bytes available to a stage."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """The model to measure, and the limits of the measurement."""

    graph: Graph
    table: CutTable
    cache: ProfileCache
    weight_bytes: int
    room: float
    device: torch.device


class _Sized:
    """The model for one size of micro-batch."""

    def __init__(self, subject: _Subject, size: int) -> None:
        self.size = size
        self.cache = subject.cache
        self._subject = subject
        self._operations = operations_of(subject.graph, size)
        self.distinct: Sequence[Operation] = distinct(self._operations)
        self._counts = Counter(each.signature for each in self._operations.values())

    @cached_property
    def bench(self) -> OpBenchmark:
        """The benchmark of the distinct operations."""
        subject = self._subject
        return OpBenchmark(self.distinct, subject.device, subject.weight_bytes, subject.room)

    def pace(self, times: Times) -> float:
        """Return the present speed of this rank relative to `times`; above 1 if faster.

        Each operation is weighted by its count in the model.
        """
        return self.bench.pace(times, [self._counts[each.signature] for each in self.distinct])

    def by_node(self, times: Times) -> tuple[float, ...]:
        """Return the seconds of each node, estimated from its counted work if it was not timed."""
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
    """Return the times of each kind, and whether this rank must store those of its kind.

    *Collective.* The times of a kind are the shortest of its ranks; slower ranks have a lower pace.
    If any rank of the kind has measured, the first rank of the kind on each host stores them.
    """
    kind = kinds[world.rank]
    known = None if fresh else sized.cache.read(sized.size, len(sized.distinct))
    own = world.together(lambda: sized.bench.medians() if known is None else known)
    texts = world.all_gather(json.dumps([known is None, list(own)]))
    parts = [(of, *json.loads(text)) for of, text in zip(kinds, texts, strict=True)]
    times = {of: _shortest([own for other, _, own in parts if other == of]) for of in kinds}
    measured = any(new for other, new, _ in parts if other == kind)
    # On each host, since hosts may not share a file system.
    alike = zip(kinds, world.hosts, strict=True)
    first = list(alike).index((kind, world.host)) == world.rank
    return times, measured and first


def _store(sized: _Sized, times: Times) -> str:
    """Cache measured times; return the problem if that fails, else an empty string."""
    try:
        sized.cache.write(sized.size, times)
    except OSError as error:
        return f"measured times cannot be cached in {sized.cache.path.parent}: {error.strerror}"
    return ""


def _shortest(rows: Sequence[Times]) -> Times:
    """Return the shortest time of each operation; None if no rank has one."""
    return [
        min((seconds for seconds in column if seconds is not None), default=None)
        for column in zip(*rows, strict=True)
    ]


def _worth_more(curve: Mapping[int, Seconds]) -> bool:
    """Return whether a sample took clearly less time, on any kind, at the last size than before.

    True for a single size.
    """
    if len(curve) < 2:
        return True
    (small, before), (large, last) = list(curve.items())[-2:]
    return any(sum(last[kind]) / large < (1 - _GAIN) * sum(before[kind]) / small for kind in last)


def _total(times: Times) -> float:
    """Return the seconds of all operations that were timed."""
    return sum(seconds or 0.0 for seconds in times)


def _paces(world: World, sized: _Sized, times: Times) -> list[float]:
    """Return the pace of every rank, measured on all at the same time. *Collective.*

    1 without a measurement if there is a single rank.
    """
    if world.size == 1:
        return [1.0]
    world.together(lambda: sized.bench)  # so that all ranks begin at the same time
    return [float(text) for text in world.all_gather(repr(sized.pace(times)))]


def _stage_weight_bytes(graph: Graph, stages: int) -> int:
    """Return the mean bytes of the weights of a stage."""
    return sum(spec.nbytes for spec in set(graph.weights.values())) // stages
