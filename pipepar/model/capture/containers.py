"""Values that hold others: taken apart down to the fields of plain dataclasses."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
import torch.utils._pytree as pytree

from pipepar.errors import CaptureError


def flatten(
    tree: Any, expected: pytree.TreeSpec | None = None
) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves of any nesting, and the structure that rebuilds it.

    A class of dataclass is made known to torch when the first of its objects is met; the structure
    rebuilds an object of the same class without calling it, so that nothing is computed again in
    `__init__` or `__post_init__`.

    Args:
        tree: tuples, lists, dicts, named tuples, dataclasses and what else torch knows, nested.
        expected: the structure that it probably has; to compare takes a fraction of the time.

    Returns:
        The leaves in order, and the structure: the expected one itself if it is equal to that.
    """
    leaves: list[Any] = []
    if expected is not None and _collect(tree, expected, leaves):
        return leaves, expected
    leaves, structure = pytree.tree_flatten(tree)
    unknown = {type(leaf) for leaf in leaves if _is_dataclass_object(leaf)}
    if unknown:
        for kind in unknown:
            _register(kind)
        return flatten(tree, expected)  # a field may hold another
    return leaves, expected if expected is not None and structure == expected else structure


def nth_leaf(tree: Any, index: int) -> Any:
    """One leaf of any nesting.

    Args:
        tree: what to take it from.
        index: its place among the leaves, from 0.

    Returns:
        The leaf.
    """
    return flatten(tree)[0][index]


def nth_value(result: Any, index: int, count: int) -> Any:
    """One of the values that a layer hands to the next.

    Args:
        result: what the layer returned; anything but a tuple is one value.
        index: which of the values, from 0.
        count: how many there must be.

    Returns:
        The value.

    Raises:
        CaptureError: there are more or fewer. How many a layer gives is not known before it runs
            where it depends on values; then it is taken to be what the next cannot do without.
    """
    values = result if isinstance(result, tuple) else (result,)
    if len(values) != count:
        raise CaptureError(
            f"a layer returned {len(values)} values, expected {count}, as many as the next layer's "
            f"forward requires; give that one as many parameters without defaults"
        )
    return values[index]


def _collect(tree: Any, expected: pytree.TreeSpec, leaves: list[Any]) -> bool:
    """Append the leaves while the structure is the expected one, class by class and key by key."""
    kind, found = expected.type, type(tree)
    if kind is None:
        leaves.append(tree)
        return found is torch.Tensor or (
            pytree.tree_is_leaf(tree) and not _is_dataclass_object(tree)
        )
    if found is not (expected.context if kind is namedtuple else kind):
        return False
    parts, context = pytree.SUPPORTED_NODES[kind].flatten_fn(tree)
    if len(parts) != expected.num_children or context != expected.context:
        return False
    return all(map(_collect, parts, expected.children(), repeat(leaves)))


def _is_dataclass_object(leaf: Any) -> bool:
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)


def _register(kind: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind)]

    def take_apart(value: Any) -> tuple[list[Any], None]:
        return [getattr(value, name) for name in names], None

    def take_apart_named(value: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], None]:
        return [(pytree.GetAttrKey(name), getattr(value, name)) for name in names], None

    def rebuild(values: Iterable[Any], _: None) -> Any:
        made = object.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)  # a frozen one allows no other way
        return made

    pytree.register_pytree_node(kind, take_apart, rebuild, flatten_with_keys_fn=take_apart_named)
