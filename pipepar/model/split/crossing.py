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

# Moving a byte to or from memory takes about as long as this many FLOPs on a modern CPU or GPU, so
# that nodes without FLOPs have a cost too. The exact number matters little for where to cut.
_FLOPS_PER_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """A legal cut between two nodes of a graph."""

    position: int
    """Position of the first node after the cut; 1 or more."""
    operation: str
    """Name of the last node before the cut."""
    module: str
    """Path of the module that this last node was traced in; "" for the model itself."""
    tensors: int
    """Number of tensors that cross; 1 or more."""
    nbytes: int
    """Total size of these tensors in bytes, at the example's sizes."""
    done: float
    """Share of the model's work before the cut, 0 to 1."""


@dataclass(frozen=True, slots=True)
class CutTable:
    """The costs and the legal cuts of a graph, from which a partition is chosen."""

    counted: Mapping[fx.Node, NodeCost]
    """Cost of each node of the graph, inputs and weights included."""
    costs: tuple[float, ...]
    """Work of each compute node: FLOPs, plus the bytes moved as an equivalent number of FLOPs."""
    flops: tuple[int, ...]
    """Floating-point operations of each compute node."""
    cuts: tuple[Cut, ...]
    """Every legal cut, by position."""

    @property
    def crossing(self) -> tuple[float | None, ...]:
        """For each compute node the bytes that cross a cut before it; None if it is illegal."""
        sizes = {cut.position: float(cut.nbytes) for cut in self.cuts}
        return tuple(sizes.get(position) for position in range(len(self.costs)))


def cut_table(graph: Graph) -> CutTable:
    """Return the costs and the legal cuts of a graph.

    A cut is legal if at least one tensor crosses it, no tuple or list crosses it, and no node after
    it writes into memory of a node before it.

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
        counted=costs,
        costs=tuple(work),
        flops=tuple(costs[node].flops for node in graph.nodes),
        cuts=tuple(_cuts(graph, costs, work)),
    )


def _cuts(graph: Graph, costs: dict[fx.Node, NodeCost], work: Sequence[float]) -> Iterator[Cut]:
    nodes = graph.nodes
    done = list(accumulate(work))
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
                done=done[position - 1] / (done[-1] or 1.0),
            )


def _totals(count: int, spans: Iterable[tuple[int, int, int]]) -> list[int]:
    """Return for each of `count` positions the total of the spans that a cut before it divides.

    A span has the positions of its first and last node, and a number that is added.
    """
    changes = [0] * (count + 2)
    for first, last, number in spans:
        if last > first:
            changes[first + 1] += number
            changes[last + 1] -= number
    return list(accumulate(changes))


def _lifetimes(graph: Graph) -> Iterator[tuple[fx.Node, int, int]]:
    """Yield each tensor with its position and the last position that reads it.

    The position of an input is -1, and that of the model's output the number of nodes. A read of
    a size does not count: a stage reads sizes from tensors that it receives anyway.
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
    """Return the first position and the position of the last write of each group of aliases."""
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
