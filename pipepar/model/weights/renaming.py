"""Recipes for checkpoints whose tensors transformers renames, splits or fuses while it loads them.

Examples: attention that is one matrix in the checkpoint and three in the model, and experts that
are one tensor each in the checkpoint and one stacked tensor in the model. transformers defines the
conversions from the checkpoint to the model. This module inverts them: it determines which of the
checkpoint's tensors each tensor of the model needs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import nn

from pipepar.model.compat.transformers_internals import ConversionTable, ignored_patterns
from pipepar.model.weights.recipes import Recipe, Recipes, Tensors, same

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Piece: TypeAlias = tuple[str, str]
"""A tensor's name in the checkpoint, and the pattern of the conversion that uses the tensor."""

# Buffers that older versions saved and that models now compute; transformers ignores them too.
_COMPUTED_BUFFERS: Final = (r"(^|\.)position_ids$", r"(^|\.)inv_freq$")


class TransformersNames:
    """The mapping from a checkpoint's names to those of a transformers model.

    Args:
        model: the model, its parameters on meta.
        prefix: the prefix that a wrapper adds to the model's names, including the dot.
    """

    def __init__(self, model: PreTrainedModel, prefix: str = "") -> None:
        self._model = model
        self._prefix = prefix
        self._table = ConversionTable(model)
        self._own = model.state_dict()

    def recipes(self, stored: Collection[str]) -> Recipes:
        """See `Naming.recipes`; unneeded tensors have no recipe and are not surplus either."""
        by_name: dict[str, Recipe] = {}
        surplus: list[str] = []
        converted: dict[str, list[Piece]] = {}
        for name in self._table.sorted_names(stored):
            target, pattern = self._renamed(name)
            if target not in self._own:
                surplus += [] if self._is_unneeded(name, target) else [name]
            elif pattern is None:
                by_name[self._prefix + target] = same(name, self._prefix + target)
            else:
                converted.setdefault(target, []).append((name, pattern))
        for target, pieces in converted.items():
            recipe = Recipe(
                tuple(name for name, _ in pieces), partial(self._convert, target, pieces)
            )
            for made in self._table.targets(target, pieces[0][1]):
                by_name[self._prefix + made] = recipe
        return Recipes(by_name, tuple(surplus))

    def _renamed(self, name: str) -> tuple[str, str | None]:
        """Return the model's name and the conversion's pattern; see `ConversionTable.renamed`.

        If the model has a tensor of the old name but none of the new one, the old name is returned.
        """
        target, pattern = self._table.renamed(name)
        if target not in self._own and name in self._own:
            return name, None
        return target, pattern

    def _convert(self, target: str, pieces: list[Piece], values: list[torch.Tensor]) -> Tensors:
        """Return the model's tensors, by prefixed name, that a conversion makes from the pieces."""
        made = self._table.convert(target, pieces, values)
        return {self._prefix + name: value for name, value in made.items()}

    def _is_unneeded(self, name: str, target: str) -> bool:
        """Whether the model does not need a tensor that its checkpoint may contain.

        A checkpoint may contain a head, a pooler or another part that this class does not have. An
        additional layer, or an additional tensor in a part that the class has, means that the
        checkpoint belongs to another configuration.
        """
        patterns = (*ignored_patterns(self._model), *_COMPUTED_BUFFERS)
        if any(re.search(pattern, name) for pattern in patterns):
            return True
        base = f"{self._model.base_model_prefix}."
        return not any(map(self._has_parent, {target, target.removeprefix(base), base + target}))

    def _has_parent(self, target: str) -> bool:
        """Whether a name belongs to a submodule of the model, or to a layer after its last one.

        False for a name without a dot.
        """
        owner: nn.Module = self._model
        *parts, _ = target.split(".")
        for part in parts:
            if owner._modules.get(part) is None:
                return part.isdigit()
            owner = owner.get_submodule(part)
        return bool(parts)
