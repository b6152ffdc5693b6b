"""Which values share memory, and which operations write into memory that others read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from pipepar.model.compat.torch_internals import schema_arguments, storage_number

aten = torch.ops.aten

# In eval mode these return their very input, which their schemas do not say.
_RETURN_THEIR_INPUT = {
    aten.dropout.default,
    aten.alpha_dropout.default,
    aten.feature_dropout.default,
    aten.feature_alpha_dropout.default,
}


def writes(node: fx.Node) -> list[fx.Node]:
    """The arguments that a node modifies in place.

    Args:
        node: any node.

    Returns:
        The nodes whose values it writes into; none for most.
    """
    return [argument for argument, written in _annotated(node) if written]


def alias_groups(
    nodes: Iterable[fx.Node], memory: Mapping[fx.Node, frozenset[int]]
) -> dict[fx.Node, int]:
    """Divide nodes into groups that may share memory.

    Two nodes share a group where an operation's schema says that its result may be a view of its
    argument, or where a trial run found them in the same memory.

    Args:
        nodes: the nodes of a graph, in order.
        memory: for each node of the trial run, numbers of the memory its tensors lie in.

    Returns:
        A number for each node; equal numbers may alias.
    """
    groups = _Groups()
    for node in nodes:
        for argument, _ in _annotated(node):
            groups.join(node, argument)
        if _is_getitem(node):
            groups.join(node, node.all_input_nodes[0])
        for number in memory.get(node, ()):
            groups.join(node, number)
    return {node: groups.number(node) for node in nodes}


def memory_of(values: Any) -> frozenset[int]:
    """Numbers of the memory of some tensors, valid while those exist.

    Args:
        values: tensors and anything else, nested; without tensors there is no memory.

    Returns:
        A number for each piece of memory; two values that have one in common share memory.
    """
    return frozenset(
        storage_number(leaf)
        for leaf in pytree.tree_leaves(values)
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
    )


def _annotated(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """The arguments that the result may alias, and whether the node writes into them."""
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
    """Disjoint sets, joined by union-find."""

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
            following = self._parent.get(member, root)
            self._parent[member] = root
            member = following
        return root
