"""Legal cuts of a graph, and the tensors that cross them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from torch import fx

from pipepar.model.aliases import alias_groups, writes
from pipepar.model.capture.graph import Graph
from pipepar.model.split.node_costs import NodeCost, measure
from pipepar.model.split.stage_sizes import is_scalar

# Moving a byte to or from memory takes about as long as this many FLOPs on a modern CPU or GPU.
# With it, nodes without FLOPs have a cost too.
_FLOPS_PER_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """A legal cut between two nodes of a graph."""

    position: int
    """Position of the first node after the cut; 1 or more."""
    operation: str
    """Name of the last node before the cut."""
    module: str
    """Path of the module whose forward produced that last node; "" for the model itself."""
    tensors: int
    """Number of tensors that cross; 1 or more.

    Numbers that cross are not counted, nor tensors from which only numbers are read, as by
    `.item()`.
    """
    nbytes: int
    """Total size of these tensors in bytes, at the example's sizes."""
    work_before: float
    """Share of the model's work before the cut, 0 to 1."""


@dataclass(frozen=True, slots=True)
class CutTable:
    """The costs and the legal cuts of a graph, from which a partition is chosen."""

    node_costs: Mapping[fx.Node, NodeCost]
    """Cost of each node of the graph, inputs and weights included."""
    costs: tuple[float, ...]
    """Work of each compute node: FLOPs, plus the bytes moved as an equivalent number of FLOPs."""
    flops: tuple[int, ...]
    """Floating-point operations of each compute node; see `NodeCost.flops`."""
    cuts: tuple[Cut, ...]
    """Every legal cut, by position."""

    @property
    def crossing(self) -> tuple[float | None, ...]:
        """For each compute node, the bytes that cross a cut before it; see `Cut.nbytes`.

        None if that cut is illegal; always None for position 0.
        """
        sizes = {cut.position: float(cut.nbytes) for cut in self.cuts}
        return tuple(sizes.get(position) for position in range(len(self.costs)))


def cut_table(graph: Graph) -> CutTable:
    """Return the costs and the legal cuts of a graph.

    A cut is legal if at least one tensor crosses it, no tuple or list crosses it, and no node after
    it writes into memory that a node before it may share.

    Args:
        graph: the captured model.

    Returns:
        The table.
    """
    costs = measure(graph)
    work = [
        float(costs[node].flops + _FLOPS_PER_BYTE * costs[node].touched) for node in graph.nodes
    ]
    return CutTable(
        node_costs=costs,
        costs=tuple(work),
        flops=tuple(costs[node].flops for node in graph.nodes),
        cuts=tuple(_cuts(graph, costs, work)),
    )


def _cuts(graph: Graph, costs: dict[fx.Node, NodeCost], work: Sequence[float]) -> Iterator[Cut]:
    """Yield the legal cuts by position; `work` has the work of each compute node."""
    nodes = graph.nodes
    work_until = list(accumulate(work))
    lifetimes = list(_lifetimes(graph))
    tensors = _totals(len(nodes), ((created, last, 1) for _, created, last in lifetimes))
    nbytes = _totals(
        len(nodes), ((created, last, costs[node].size) for node, created, last in lifetimes)
    )
    tuples = [
        (created, last)
        for node, created, last in lifetimes
        if isinstance(node.meta.get("val"), (tuple, list))
    ]
    obstacles = _totals(len(nodes), ((*span, 1) for span in (*tuples, *_written(graph, costs))))
    for position, before in enumerate(nodes[:-1], start=1):
        if tensors[position] and not obstacles[position]:
            module = before.target if before.op == "call_module" else before.meta.get("module", "")
            yield Cut(
                position=position,
                operation=before.name,
                module=str(module),
                tensors=tensors[position],
                nbytes=nbytes[position],
                work_before=work_until[position - 1] / (work_until[-1] or 1.0),
            )


def _totals(count: int, spans: Iterable[tuple[int, int, int]]) -> list[int]:
    """Return for each position the total weight of the spans that a cut before it divides.

    A span consists of the positions of its first and last node, and its weight. Entry p is the sum
    of the weights of the spans with first < p <= last. The list has `count` + 2 entries.
    """
    changes = [0] * (count + 2)
    for first, last, weight in spans:
        if last > first:
            changes[first + 1] += weight
            changes[last + 1] -= weight
    return list(accumulate(changes))


def _lifetimes(graph: Graph) -> Iterator[tuple[fx.Node, int, int]]:
    """Yield each value that is not a number, its position, and that of its last reader.

    Most values are tensors; some are tuples. An input has the position -1. The last reader of an
    output of the model has the number of nodes as its position; that of an unread value is -1.

    Readers whose result is a number are ignored, because a stage reads most sizes from tensors that
    it receives anyway. So a tensor that only `.item()` reads is not counted, and numbers that are
    sent are not counted either.
    """
    nodes = graph.nodes
    position = {node: index for index, node in enumerate(nodes)}
    results = set(graph.module.graph.output_node().all_input_nodes)
    for node in (*graph.module.graph.find_nodes(op="placeholder"), *nodes):
        if is_scalar(node):
            continue
        uses = [position[user] for user in node.users if user in position and not is_scalar(user)]
        last = len(nodes) if node in results else max(uses, default=-1)
        yield node, position.get(node, -1), last


def _written(graph: Graph, costs: dict[fx.Node, NodeCost]) -> list[tuple[int, int]]:
    """Return the positions of the first node and the last write of each group written into.

    A group consists of nodes that may share memory; see `alias_groups`.
    """
    nodes = graph.nodes
    memory = {node: costs[node].memory for node in nodes}
    group = alias_groups(graph.module.graph.nodes, memory)
    first: dict[int, int] = {}
    for position, node in enumerate(nodes):
        first.setdefault(group[node], position)
    last = {
        group[target]: position for position, node in enumerate(nodes) for target in writes(node)
    }
    return [(first[number], last[number]) for number in sorted(last) if number in first]
