"""Checkpoints whose tensors transformers renames, splits or fuses while it loads them.

Its own tables say how, and its own operations do it: attention that was one matrix and is three,
experts that were a file's many tensors and are one. Here they are turned round: for each of the
model's tensors, which of the file's it takes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from pipepar.model.weights.recipes import Recipe, Recipes, Tensors, same

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Piece: TypeAlias = tuple[str, str]
"""A tensor's name in the checkpoint, and the converter's pattern that it matched."""


class TransformersNames:
    """How a checkpoint's names become those of a transformers model.

    Args:
        model: the model, its parameters on meta.
        prefix: what stands before the model's own names in the names asked for, with its dot.
    """

    def __init__(self, model: PreTrainedModel, prefix: str = "") -> None:
        self._model = model
        self._prefix = prefix
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._own = model.state_dict()

    def recipes(self, stored: Collection[str]) -> Recipes:
        """Turn the tables round; see `Naming.recipes`."""
        by_name: dict[str, Recipe] = {}
        surplus: list[str] = []
        fused: dict[str, list[Piece]] = {}
        for name in sorted(stored, key=dot_natural_key):  # experts are stacked in this order
            target, pattern = self._renamed(name)
            if target not in self._own:
                surplus += [] if self._may_be_left(name, target) else [name]
            elif pattern is None:
                by_name[self._prefix + target] = same(name, self._prefix + target)
            else:
                fused.setdefault(target, []).append((name, pattern))
        for target, sources in fused.items():
            by_name |= self._converted(target, sources)
        return Recipes(by_name, tuple(surplus))

    def _renamed(self, name: str) -> tuple[str, str | None]:
        base = self._model.base_model_prefix
        target, pattern = rename_source_key(
            name, self._renamings, self._converters, base, self._own
        )
        if target not in self._own and name in self._own:
            return name, None
        return target, pattern

    def _converted(self, target: str, sources: list[Piece]) -> dict[str, Recipe]:
        """One recipe, under the name of everything that comes out of it."""
        converter = next(c for c in self._converters if sources[0][1] in c.source_patterns)
        recipe = Recipe(
            tuple(name for name, _ in sources), partial(self._convert, converter, target, sources)
        )
        first, *others = converter.target_patterns
        targets = [target, *(target.replace(first, other) for other in others)]
        return {self._prefix + name: recipe for name in targets}

    def _convert(
        self,
        converter: Any,
        target: str,
        sources: list[Piece],
        values: list[torch.Tensor],
    ) -> Tensors:
        fresh = copy.deepcopy(converter)  # it collects tensors
        for (name, pattern), value in zip(sources, values, strict=True):
            fresh.add_tensor(target, name, pattern, value)
        made = fresh.convert(target, model=self._model, config=self._model.config)
        parts = {name: part[0] if isinstance(part, list) else part for name, part in made.items()}
        return {self._prefix + name: part for name, part in parts.items()}

    def _may_be_left(self, name: str, target: str) -> bool:
        """Whether a model like this one may leave a tensor unused.

        A head, a pooler, or another part that this class does not have: checkpoints hold more than
        one task needs. But a further layer in a row, or a further tensor in a part that it has,
        means that the checkpoint belongs to another configuration.
        """
        patterns = list(self._model._keys_to_ignore_on_load_unexpected or ())
        # Once saved with the model, today computed by it; transformers passes over them too.
        patterns += [r"(^|\.)position_ids$", r"(^|\.)inv_freq$"]
        if any(re.search(pattern, name) for pattern in patterns):
            return True
        base = f"{self._model.base_model_prefix}."
        return not any(map(self._has_place, {target, target.removeprefix(base), base + target}))

    def _has_place(self, target: str) -> bool:
        """Whether a name leads into a part of the model, or to a layer past the last of a row."""
        owner: nn.Module = self._model
        *parts, _ = target.split(".")
        for part in parts:
            if owner._modules.get(part) is None:
                return part.isdigit()
            owner = owner.get_submodule(part)
        return bool(parts)
