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
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from pipepar.model.recipes import Recipe, Recipes, Tensors, same

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Source: TypeAlias = tuple[str, str]
"""A tensor's name in the checkpoint, and the converter's pattern that it matched."""


class TransformersNames:
    """How a checkpoint's names become those of a transformers model.

    Args:
        model: the model, its parameters on meta.
        prefix: what stands before the model's own names in the names asked for, with its dot.
        architectures: names of the classes that the checkpoint was saved from. A checkpoint of
            another class may hold the weights of another head.
    """

    def __init__(
        self, model: PreTrainedModel, prefix: str = "", architectures: Collection[str] = ()
    ) -> None:
        self._model = model
        self._prefix = prefix
        self._other_class = type(model).__name__ not in architectures
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._own = model.state_dict()

    def recipes(self, stored: Collection[str]) -> Recipes:
        """Turn the tables round; see `Naming.recipes`. *Local.*"""
        by_name: dict[str, Recipe] = {}
        surplus: list[str] = []
        fused: dict[str, list[Source]] = {}
        for name in sorted(stored, key=dot_natural_key):  # experts are stacked in this order
            target, pattern = self._renamed(name)
            if target not in self._own:
                surplus.append(name)
            elif pattern is None:
                by_name[self._prefix + target] = same(name, self._prefix + target)
            else:
                fused.setdefault(target, []).append((name, pattern))
        for target, sources in fused.items():
            by_name |= self._converted(target, sources)
        return Recipes(by_name, tuple(name for name in surplus if not self._expected(name)))

    def _renamed(self, name: str) -> tuple[str, str | None]:
        base = self._model.base_model_prefix
        target, pattern = rename_source_key(
            name, self._renamings, self._converters, base, self._own
        )
        if target not in self._own and name in self._own:
            return name, None
        return target, pattern

    def _converted(self, target: str, sources: list[Source]) -> dict[str, Recipe]:
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
        sources: list[Source],
        values: list[torch.Tensor],
    ) -> Tensors:
        fresh = copy.deepcopy(converter)  # it collects tensors
        for (name, pattern), value in zip(sources, values, strict=True):
            fresh.add_tensor(target, name, pattern, value)
        made = fresh.convert(target, model=self._model, config=self._model.config)
        parts = {name: part[0] if isinstance(part, list) else part for name, part in made.items()}
        return {self._prefix + name: part for name, part in parts.items()}

    def _expected(self, name: str) -> bool:
        """Whether a model like this one may leave a tensor unused."""
        base = self._model.base_model_prefix
        if self._other_class and not (base and name.startswith(f"{base}.")):
            return True
        buffers = [buffer for buffer, _ in self._model.named_buffers()]
        patterns = list(self._model._keys_to_ignore_on_load_unexpected or ())
        # Once saved with the model, today computed by it; transformers passes over them too.
        patterns += [
            rf"(^|\.){kind}$"
            for kind in ("position_ids", "inv_freq")
            if any(buffer.endswith(kind) for buffer in buffers)
        ]
        return any(re.search(pattern, name) for pattern in patterns)
