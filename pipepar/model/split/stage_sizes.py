"""Sizes that a stage reads from its inputs or computes, so that they need not cross."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

_SCALARS = (torch.SymInt, torch.SymFloat, torch.SymBool, bool, int, float)


def is_scalar(node: fx.Node) -> bool:
    """Whether a node's value is a number, such as a size.

    Args:
        node: a node of a captured graph.

    Returns:
        False for tensors and all other values.
    """
    return isinstance(node.meta.get("val"), _SCALARS)


class StageSizes:
    """The sizes that one stage needs.

    A size is read from a received tensor if a dimension of it has the same symbolic expression.
    Otherwise it is computed from other sizes. It crosses as a number only if neither is possible.

    Args:
        own: the nodes of the stage.
        received: the input values of the stage, in calling order.
    """

    def __init__(self, own: set[fx.Node], received: Sequence[fx.Node]) -> None:
        self._own = own
        self._received = set(received)
        self._dims: dict[object, tuple[fx.Node, int]] = {}
        for node in received:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    self._dims.setdefault(_expression(size), (node, dim))

    def missing(self, node: fx.Node) -> list[fx.Node]:
        """Return the further inputs that the stage needs for a number.

        Args:
            node: the number.

        Returns:
            Values of earlier stages; empty if the stage can compute the number without them.
        """
        if node.op == "get_attr" or node in self._received or self._dimension(node) is not None:
            return []
        if node in self._own:
            return [m for value in node.all_input_nodes for m in self._missing_argument(value)]
        if not is_scalar(node) or not node.all_input_nodes:
            return [node]
        if any(not is_scalar(a) or self.missing(a) for a in node.all_input_nodes):
            return [node]
        return []

    def _missing_argument(self, value: fx.Node) -> list[fx.Node]:
        if value in self._own and not is_scalar(value):
            return []
        return self.missing(value)

    def recompute(
        self, node: fx.Node, graph: fx.Graph, place: Callable[[fx.Node], fx.Node]
    ) -> fx.Node | None:
        """Add a node that reads a size from a received tensor.

        Args:
            node: the value that the stage needs.
            graph: the graph of the stage; the new node is appended to it.
            place: returns the stage's node for a node of the whole graph.

        Returns:
            The new node; None if no received tensor has this size.
        """
        found = self._dimension(node)
        if found is None:
            return None
        tensor, dim = found
        return graph.call_function(torch.ops.aten.sym_size.int, (place(tensor), dim))

    def _dimension(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt):
            return None
        return self._dims.get(_expression(value))


def _expression(size: int | torch.SymInt) -> object:
    return size.node.expr if isinstance(size, torch.SymInt) else size
