"""The private interfaces of transformers that pipepar uses.

Tried with torch 2.13: transformers 5.18.0, 5.19.0 and 5.24.0. Weights also load with 5.3.0 to
5.17.0, but their image processors need torchvision. 5.1.0 and 5.2.0 cannot trace experts in float32
on a CPU, and 5.0.0 lacks `_get_dtype_plan`. `tests/model/compat/test_versions.py` tries the oldest
and the newest version that pyproject.toml accepts.

transformers takes seconds to import, so only the functions that need it import it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def build_from_config(
    model_class: Any, config: PreTrainedConfig, dtype: torch.dtype | None
) -> PreTrainedModel:
    """Return a new model of a class, without the weights of a checkpoint.

    Args:
        model_class: a class of transformers.
        config: its configuration.
        dtype: the dtype of its parameters; None for torch's default.
    """
    model: PreTrainedModel = model_class._from_config(config, dtype=dtype)
    return model


def dtypes_by_pattern(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtypes of parameters that need more precision than the model.

    Args:
        model: the model.
        dtype: the dtype of the model.

    Returns:
        Dtypes by pattern. A pattern matches any part of a parameter's name; * in it matches any
        characters.
    """
    return model._get_dtype_plan(dtype)


def ignored_patterns(model: PreTrainedModel) -> list[str]:
    """Return regular expressions of checkpoint names that a model does not need."""
    return list(model._keys_to_ignore_on_load_unexpected or ())


def has_eager_experts(module: nn.Module) -> bool:
    """Return whether a module contains transformers' eager experts, which cannot be captured."""
    return any(
        type(part).__name__.endswith("Experts")
        and getattr(getattr(part, "config", None), "_experts_implementation", None) == "eager"
        for part in module.modules()
    )


class ConversionTable:
    """The rules by which transformers renames, splits and fuses a checkpoint's tensors.

    Args:
        model: the model; its parameters may be on meta.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers import conversion_mapping, core_model_loading

        mapping = conversion_mapping.get_model_conversion_mapping(model)
        self._loading = core_model_loading
        self._model = model
        self._renamings = [x for x in mapping if isinstance(x, core_model_loading.WeightRenaming)]
        self._converters = [x for x in mapping if isinstance(x, core_model_loading.WeightConverter)]
        self._own = model.state_dict()

    def sorted_names(self, names: Collection[str]) -> list[str]:
        """Return checkpoint names in the order in which transformers stacks experts."""
        return sorted(names, key=self._loading.dot_natural_key)

    def renamed(self, name: str) -> tuple[str, str | None]:
        """Return the model's name for a checkpoint's tensor.

        Args:
            name: the name in the checkpoint.

        Returns:
            The name; and the pattern of the conversion that the tensor goes into, or None if it is
            used unchanged. If the conversion makes several tensors, the name is that of the first.
            The model may have no tensor of this name.
        """
        return self._loading.rename_source_key(
            name, self._renamings, self._converters, self._model.base_model_prefix, self._own
        )

    def targets(self, target: str, pattern: str) -> list[str]:
        """Return the names of all tensors that a conversion makes.

        Args:
            target: the first of them, from `renamed`.
            pattern: of the conversion, from `renamed`.
        """
        first, *others = self._converter(pattern).target_patterns
        return [target, *(target.replace(first, other) for other in others)]

    def convert(
        self, target: str, sources: Sequence[tuple[str, str]], values: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Convert tensors of a checkpoint into tensors of the model.

        Args:
            target: the model's name for them, from `renamed`.
            sources: the checkpoint's name and the conversion's pattern of each.
            values: their values, in the same order.

        Returns:
            The model's tensors by name.
        """
        converter = copy.deepcopy(self._converter(sources[0][1]))  # it stores the added tensors
        for (name, pattern), value in zip(sources, values, strict=True):
            converter.add_tensor(target, name, pattern, value)
        made = converter.convert(target, model=self._model, config=self._model.config)
        return {name: part[0] if isinstance(part, list) else part for name, part in made.items()}

    def _converter(self, pattern: str) -> Any:
        return next(each for each in self._converters if pattern in each.source_patterns)
