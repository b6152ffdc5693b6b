"""Recipes that make the tensors of a model from the tensors of a checkpoint.

Most tensors have the same name and value in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Tensors of a checkpoint, and the function that makes tensors of the model from them."""

    sources: tuple[str, ...]
    """The names of the required tensors in the checkpoint."""
    make: Callable[[list[torch.Tensor]], Tensors]
    """Takes the values of `sources` in order, and returns the model's tensors by name."""


@dataclass(frozen=True, slots=True)
class Recipes:
    """The recipes for all tensors of a model that a checkpoint provides."""

    by_name: Mapping[str, Recipe]
    """The recipe of each tensor, by the model's name."""
    surplus: tuple[str, ...]
    """The checkpoint's names of tensors that show that it belongs to another model."""


class Naming(Protocol):
    """A mapping from a checkpoint's names to a model's names."""

    def recipes(self, stored: Collection[str]) -> Recipes:
        """Return the recipes for a checkpoint.

        Args:
            stored: all names in the checkpoint.
        """


class SameNames:
    """The mapping for a checkpoint that has the model's own names, as `state_dict()` has.

    Args:
        known: all names of the model, including those of buffers.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = frozenset(known)

    def recipes(self, stored: Collection[str]) -> Recipes:
        """Return a recipe that changes nothing for each known name; see `Naming.recipes`."""
        return Recipes(
            {name: same(name, name) for name in stored if name in self._known},
            tuple(name for name in stored if name not in self._known),
        )


def same(stored: str, name: str) -> Recipe:
    """Return the recipe of a tensor that is used unchanged.

    Args:
        stored: its name in the checkpoint.
        name: its name in the model.
    """
    return Recipe((stored,), lambda values: {name: values[0]})
