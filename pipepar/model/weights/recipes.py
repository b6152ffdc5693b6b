"""How a model's own tensors are made of a checkpoint's: most are the same, under the same name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

Tensors: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """Some of a checkpoint's tensors, and what becomes of them."""

    sources: tuple[str, ...]
    """The checkpoint's names for what is needed."""
    make: Callable[[list[torch.Tensor]], Tensors]
    """From the sources' values, in order, to the model's tensors by the model's names."""


@dataclass(frozen=True, slots=True)
class Recipes:
    """A whole checkpoint, seen from a model."""

    by_name: Mapping[str, Recipe]
    """For every tensor of the model that the checkpoint holds its recipe."""
    surplus: tuple[str, ...]
    """Tensors of the checkpoint that the model has no use for, and should have."""


class Naming(Protocol):
    """How a checkpoint's names belong to a model's."""

    def recipes(self, stored: Collection[str]) -> Recipes:
        """Match a checkpoint with the model.

        Args:
            stored: every name in the checkpoint.

        Returns:
            What to make of it.
        """


class SameNames:
    """A checkpoint that calls everything what the model calls it, as `state_dict()` does.

    Args:
        known: all of the model's names, those of buffers included.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = frozenset(known)

    def recipes(self, stored: Collection[str]) -> Recipes:
        """Every name is its own; see `Naming.recipes`."""
        return Recipes(
            {name: same(name, name) for name in stored if name in self._known},
            tuple(name for name in stored if name not in self._known),
        )


def same(stored: str, name: str) -> Recipe:
    """The recipe of a tensor that is taken as it is.

    Args:
        stored: the checkpoint's name for it.
        name: the model's name for it.

    Returns:
        The recipe.
    """
    return Recipe((stored,), lambda values: {name: values[0]})
