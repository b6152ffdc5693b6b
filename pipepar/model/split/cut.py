"""Parts of a graph between cuts: inputs, outputs, weights, and the module of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from torch import fx

from pipepar.model.capture.graph import Graph
from pipepar.model.module_tensors import named_tensors
from pipepar.model.split.stage_sizes import StageSizes, is_scalar
from pipepar.model.to_meta import to_meta


@dataclass(frozen=True, slots=True)
class Part:
    """A contiguous part of a graph, with its inputs, outputs and weights."""

    begin: int
    """Position of the first node."""
    end: int
    """Position after the last node."""
    inputs: tuple[str, ...]
    """Names of the input values, in calling order."""
    outputs: tuple[str, ...]
    """Names of the values for later parts or for the model's output."""
    weights: tuple[str, ...]
    """Names of the weights, each tensor once."""
    weight_bytes: int
    """Total size of the weights in bytes."""


class Bounds(Protocol):
    """The fields that `Part` and the stage of a plan have in common."""

    @property
    def begin(self) -> int:
        """Position of the first node."""

    @property
    def end(self) -> int:
        """Position after the last node."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input values, in calling order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the returned values, in order."""


def parts(graph: Graph, cuts: Sequence[int]) -> tuple[Part, ...]:
    """Return the parts of a graph between cuts.

    Args:
        graph: the captured model.
        cuts: positions of the first node after each cut, ascending.

    Returns:
        The parts in order, one more than cuts.
    """
    nodes = graph.nodes
    results = graph.module.graph.output_node().all_input_nodes
    needed_later = set(results)
    found: list[Part] = []
    for begin, end in reversed(list(pairwise([0, *cuts, len(nodes)]))):
        own = nodes[begin:end]
        outputs = [node for node in own if node in needed_later]
        if end == len(nodes):
            outputs += [node for node in results if node.op == "get_attr"]
        inputs = _inputs(graph, own, outputs)
        needed_later |= set(inputs)
        found.append(_part(graph, begin, end, inputs, outputs))
    return tuple(reversed(found))


def _inputs(graph: Graph, own: list[fx.Node], outputs: list[fx.Node]) -> list[fx.Node]:
    """Return the values of earlier stages that a stage needs, in the graph's order."""
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
    arguments = [value for node in own if not is_scalar(node) for value in node.all_input_nodes]
    for value in (*arguments, *outputs):
        if is_scalar(value):
            tensors |= set(sizes.missing(value))
    return [node for node in graph.module.graph.nodes if node in tensors]


def _part(
    graph: Graph, begin: int, end: int, inputs: list[fx.Node], outputs: list[fx.Node]
) -> Part:
    part = Part(begin, end, tuple(n.name for n in inputs), tuple(n.name for n in outputs), (), 0)
    names = named_tensors(extract(graph, part)).keys()
    specs = {spec.name: spec for name, spec in graph.weights.items() if name in names}
    nbytes = sum(spec.nbytes for spec in specs.values())
    return replace(part, weights=tuple(specs), weight_bytes=nbytes)


def extract(graph: Graph, part: Bounds) -> fx.GraphModule:
    """Return the module of one stage.

    Args:
        graph: the captured model.
        part: the nodes of the stage, its inputs and its outputs.

    Returns:
        A module that takes `part.inputs` by position and returns a tuple of `part.outputs`. It has
        only its own weights, on meta; non-persistent buffers have their values.
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
    new.lint()
    for node in new.nodes:
        node.meta.clear()  # release the fake tensors of tracing
    module = fx.GraphModule(graph.module, new)
    for target in {str(node.target) for node in new.nodes if node.op == "call_module"}:
        # A copy, because loading the weights modifies the child.
        module.set_submodule(target, to_meta(module.get_submodule(target)))
    return module
