"""Flattening of nested containers, including dataclasses that torch does not know."""

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
    """Return the leaves of a nested value and the structure that rebuilds it.

    A dataclass is registered with torch's pytree when the first object of it is found. The
    structure rebuilds such an object without `__init__` and `__post_init__`, so that no field is
    computed twice.

    Args:
        tree: nested tuples, lists, dicts, named tuples, dataclasses and other pytree nodes.
        expected: the probable structure; a comparison is faster than flattening.

    Returns:
        The leaves in order, and the structure: `expected` itself if the structures are equal.
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
    """Return one leaf of a nested value.

    Args:
        tree: the nested value.
        index: index of the leaf, from 0.

    Returns:
        The leaf.
    """
    return flatten(tree)[0][index]


def nth_value(result: Any, index: int, count: int) -> Any:
    """Return one of the values that a layer passes to the next.

    Args:
        result: the layer's result; anything except a tuple is one value.
        index: index of the value, from 0.
        count: the expected number of values.

    Returns:
        The value.

    Raises:
        CaptureError: the number of values is not `count`. If a layer cannot run on fake tensors,
            `count` is only a guess: the number of values that the next layer requires.
    """
    values = result if isinstance(result, tuple) else (result,)
    if len(values) != count:
        raise CaptureError(
            f"a layer returned {len(values)} values, expected {count}, as many as the next layer's "
            f"forward requires; give that forward {len(values)} parameters without defaults"
        )
    return values[index]


def _collect(tree: Any, expected: pytree.TreeSpec, leaves: list[Any]) -> bool:
    """Append the leaves of a tree, and return whether its structure is the expected one."""
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

    def flatten_fields(value: Any) -> tuple[list[Any], None]:
        return [getattr(value, name) for name in names], None

    def flatten_named_fields(value: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], None]:
        return [(pytree.GetAttrKey(name), getattr(value, name)) for name in names], None

    def rebuild(values: Iterable[Any], _: None) -> Any:
        rebuilt = object.__new__(kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(rebuilt, name, value)  # setattr fails on a frozen dataclass
        return rebuilt

    pytree.register_pytree_node(
        kind, flatten_fields, rebuild, flatten_with_keys_fn=flatten_named_fields
    )
