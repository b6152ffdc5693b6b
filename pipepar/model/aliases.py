"""Nodes that share memory, and nodes that write into the memory of their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from pipepar.model.compat.torch_internals import schema_arguments, storage_number

aten = torch.ops.aten

# In eval mode these return their input itself; their schemas do not declare the alias.
_RETURN_THEIR_INPUT = {
    aten.dropout.default,
    aten.alpha_dropout.default,
    aten.feature_dropout.default,
    aten.feature_alpha_dropout.default,
}


def writes(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that a node modifies in place, by its schema or its metadata.

    Args:
        node: any node.

    Returns:
        The nodes whose values it writes into; empty for most nodes.
    """
    return [argument for argument, written in _aliased_arguments(node) if written]


def alias_groups(
    nodes: Iterable[fx.Node], memory: Mapping[fx.Node, frozenset[int]]
) -> dict[fx.Node, int]:
    """Divide nodes into groups that may share memory.

    Two nodes are in one group if the schema of an operation allows its result to be a view of its
    argument, or if their tensors had the same storage in a run on fake tensors.

    Args:
        nodes: the nodes of a graph, in order.
        memory: for each node of that run, the ids of the storages of its tensors.

    Returns:
        The number of each node's group.
    """
    groups = _Groups()
    for node in nodes:
        for argument, _ in _aliased_arguments(node):
            groups.join(node, argument)
        if _is_getitem(node):
            groups.join(node, node.all_input_nodes[0])
        for number in memory.get(node, ()):
            groups.join(node, number)
    return {node: groups.number(node) for node in nodes}


def memory_of(values: Any) -> frozenset[int]:
    """Return the ids of the storages of tensors.

    Args:
        values: tensors and other values, nested.

    Returns:
        The ids, valid while the tensors exist; values with a common id share memory.
    """
    return frozenset(
        storage_number(leaf)
        for leaf in pytree.tree_leaves(values)
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
    )


def _aliased_arguments(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Yield each argument that the result may alias, and whether the node writes into it."""
    if node.target in _RETURN_THEIR_INPUT:
        yield node.all_input_nodes[0], False
    if node.meta.get("aliases_input") or node.meta.get("writes_input"):
        for argument in node.all_input_nodes:
            yield argument, bool(node.meta.get("writes_input"))
    for parameter, value in schema_arguments(node):
        if parameter.alias_info is None:
            continue
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, fx.Node):
                yield item, parameter.alias_info.is_write


def _is_getitem(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


class _Groups:
    """Disjoint sets with union-find."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}
        self._numbers: dict[object, int] = {}

    def join(self, one: object, other: object) -> None:
        self._parent[self._root(one)] = self._root(other)

    def number(self, member: object) -> int:
        return self._numbers.setdefault(self._root(member), len(self._numbers))

    def _root(self, member: object) -> object:
        root = member
        while (parent := self._parent.get(root, root)) is not root:
            root = parent
        while member is not root:
            parent = self._parent.get(member, root)
            self._parent[member] = root
            member = parent
        return root
