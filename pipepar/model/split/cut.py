"""From a graph and its cuts to the stages: what each takes, makes and owns, and it by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from torch import fx

from pipepar.model.capture.graph import Graph
from pipepar.model.module_tensors import named_tensors
from pipepar.model.split.stage_sizes import StageSizes, is_scalar
from pipepar.model.to_meta import to_meta


@dataclass(frozen=True, slots=True)
class Part:
    """A contiguous part of a graph and what it exchanges with the others."""

    begin: int
    """Position of its first node."""
    end: int
    """One past its last node."""
    inputs: tuple[str, ...]
    """Names of the values it is called with, in calling order."""
    outputs: tuple[str, ...]
    """Names of the values it makes for later parts or for the model's output."""
    weights: tuple[str, ...]
    """Names of its weights, each tensor once."""
    weight_bytes: int
    """Their size, in bytes."""


class Bounds(Protocol):
    """What `extract` needs to know of a stage; a Part has it, and so has a plan's stage."""

    @property
    def begin(self) -> int:
        """Position of its first node."""

    @property
    def end(self) -> int:
        """One past its last node."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values it is called with."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the values it returns."""


def parts(graph: Graph, cuts: Sequence[int]) -> tuple[Part, ...]:
    """What each stage takes, makes and owns, if one cuts at these positions.

    Args:
        graph: the captured model.
        cuts: node positions, ascending.

    Returns:
        One part more than there are cuts.
    """
    nodes = graph.nodes
    results = graph.module.graph.output_node().all_input_nodes
    wanted = set(results)
    found: list[Part] = []
    for begin, end in reversed(list(pairwise([0, *cuts, len(nodes)]))):
        own = nodes[begin:end]
        made = [node for node in own if node in wanted]
        if end == len(nodes):
            made += [node for node in results if node.op == "get_attr"]
        needed = _needed(graph, own, made)
        wanted |= set(needed)
        found.append(_part(graph, begin, end, needed, made))
    return tuple(reversed(found))


def _needed(graph: Graph, own: list[fx.Node], made: list[fx.Node]) -> list[fx.Node]:
    """The values that a stage must be given, in the graph's order."""
    inside = set(own)
    tensors = {
        value
        for node in own
        if not is_scalar(node)
        for value in node.all_input_nodes
        if not is_scalar(value) and value.op != "get_attr" and value not in inside
    }
    order = [node for node in graph.module.graph.nodes if node in tensors]
    sizes = StageSizes(inside, order)
    asked = [value for node in own if not is_scalar(node) for value in node.all_input_nodes]
    for value in (*asked, *made):
        if is_scalar(value):
            tensors |= set(sizes.missing(value))
    return [node for node in graph.module.graph.nodes if node in tensors]


def _part(graph: Graph, begin: int, end: int, needed: list[fx.Node], made: list[fx.Node]) -> Part:
    inputs, outputs = tuple(n.name for n in needed), tuple(n.name for n in made)
    bare = Part(begin, end, inputs, outputs, (), 0)
    held = named_tensors(extract(graph, bare)).keys()
    specs = {spec.name: spec for name, spec in graph.weights.items() if name in held}
    size = sum(spec.nbytes for spec in specs.values())
    return Part(begin, end, inputs, outputs, tuple(specs), size)


def extract(graph: Graph, part: Bounds) -> fx.GraphModule:
    """One stage by itself.

    Args:
        graph: the captured model.
        part: which nodes, what they are given and what they must return.

    Returns:
        A module that takes `part.inputs` by position and returns a tuple of `part.outputs`. Its
        weights are on meta, and only its own; buffers that no checkpoint holds are real.
    """
    named = {node.name: node for node in graph.module.graph.nodes}
    received = [named[name] for name in part.inputs]
    own = graph.nodes[part.begin : part.end]
    sizes = StageSizes(set(own), received)
    new = fx.Graph()
    values = {node: new.placeholder(node.name) for node in received}

    def place(node: fx.Node) -> fx.Node:
        if node not in values:
            values[node] = sizes.recompute(node, new, place) or new.node_copy(node, place)
        return values[node]

    for node in own:
        if not is_scalar(node):
            place(node)
    new.output(tuple(place(named[name]) for name in part.outputs))
    return _apart(graph.module, new)


def _apart(whole: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A module for a graph that shares no child with the whole model's."""
    graph.lint()
    for node in graph.nodes:
        node.meta.clear()  # the fakes of tracing
    module = fx.GraphModule(whole, graph)
    for target in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
        module.set_submodule(target, to_meta(module.get_submodule(target)))
    return module
