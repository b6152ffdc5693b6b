"""Where a graph may be cut, and what would cross there."""

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

# Moving a byte through memory takes about as long as this many operations on a modern CPU or GPU.
# It gives zero-FLOP work a price; a few times more or less moves no cut out of a matrix product.
_FLOPS_PER_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where a graph may be cut."""

    position: int
    """Of the first node after it; 1 or more."""
    operation: str
    """Name of the last node before it."""
    module: str
    """Path of the module that this node was traced in, as the user names it; "" for the model."""
    tensors: int
    """How many tensors cross; 1 or more."""
    nbytes: int
    """Their size at the example's sizes, in bytes."""
    done: float
    """Share of the model's work that is done before it, 0 to 1."""


@dataclass(frozen=True, slots=True)
class CutTable:
    """What a partition needs to know."""

    counted: Mapping[fx.Node, NodeCost]
    """What each node of the graph costs, inputs and weights included."""
    costs: tuple[float, ...]
    """Work of each node, in FLOPs or their equivalent in bytes moved."""
    flops: tuple[int, ...]
    """Floating-point operations of each node."""
    cuts: tuple[Cut, ...]
    """Every legal cut, by position."""

    @property
    def crossing(self) -> tuple[float | None, ...]:
        """Bytes that cross if one cuts before a node, for each node; None where illegal."""
        sizes = {cut.position: float(cut.nbytes) for cut in self.cuts}
        return tuple(sizes.get(position) for position in range(len(self.costs)))


def cut_table(graph: Graph) -> CutTable:
    """Costs, and every place where one can cut.

    A cut is legal where at least one tensor crosses, where none of the values that cross is a tuple
    of several, and where no memory is alive that a later node writes into in place.

    Args:
        graph: the captured model.

    Returns:
        The table.
    """
    costs = measure(graph)
    work = [float(_work(costs[node])) for node in graph.nodes]
    return CutTable(
        counted=costs,
        costs=tuple(work),
        flops=tuple(costs[node].flops for node in graph.nodes),
        cuts=tuple(_cuts(graph, costs, work)),
    )


def _work(cost: NodeCost) -> int:
    return cost.flops + _FLOPS_PER_BYTE * cost.touched


def _cuts(graph: Graph, costs: dict[fx.Node, NodeCost], work: Sequence[float]) -> Iterator[Cut]:
    nodes = graph.nodes
    done = list(accumulate(work))
    crossing = _crossing(graph, costs)
    illegal = _illegal(graph, costs)
    for position, before in enumerate(nodes[:-1], start=1):
        tensors, nbytes = crossing[position]
        if tensors and not illegal[position]:
            share = done[position - 1] / (done[-1] or 1.0)
            yield Cut(position, before.name, _module(before), tensors, nbytes, share)


def _module(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return str(node.meta.get("module", ""))


def _lifetimes(graph: Graph) -> Iterable[tuple[fx.Node, int, int]]:
    """Every tensor value with its position and the last position that reads it.

    Sizes are no use of a tensor: a stage takes them from what it receives anyway.
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


def _crossing(graph: Graph, costs: dict[fx.Node, NodeCost]) -> list[tuple[int, int]]:
    """Number and bytes of the values alive at each position."""
    count = [0] * (len(graph.nodes) + 2)
    change = [0] * (len(graph.nodes) + 2)
    for node, born, last in _lifetimes(graph):
        if last > born:
            count[born + 1] += 1
            count[last + 1] -= 1
            change[born + 1] += costs[node].size
            change[last + 1] -= costs[node].size
    return list(zip(accumulate(count), accumulate(change), strict=True))


def _illegal(graph: Graph, costs: dict[fx.Node, NodeCost]) -> list[bool]:
    """Where a tuple would cross, or memory that is still to be written into."""
    blocked = [0] * (len(graph.nodes) + 2)
    for node, born, last in _lifetimes(graph):
        if last > born and isinstance(node.meta.get("val"), (tuple, list)):
            blocked[born + 1] += 1
            blocked[last + 1] -= 1
    for born, last in _written(graph, costs):
        blocked[born + 1] += 1
        blocked[last + 1] -= 1
    return [number > 0 for number in accumulate(blocked)]


def _written(graph: Graph, costs: dict[fx.Node, NodeCost]) -> list[tuple[int, int]]:
    """For each group of aliases its first member and the last write into it."""
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
