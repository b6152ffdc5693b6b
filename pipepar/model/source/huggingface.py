"""A folder as `save_pretrained` writes it becomes a model without weights."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipepar.errors import InputError, PipeparError
from pipepar.model.source.heads import Head, MeanPooling
from pipepar.model.source.on_meta import params_on_meta
from pipepar.model.weights.checkpoint_formats import open_checkpoint
from pipepar.model.weights.weight_source import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHT_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a folder's weights may lie, the better file first."""

# The name of the model inside the wrappers of heads.py.
_WRAPPER: Final = "model."


def build(folder: Path, head: Head, dtype: torch.dtype | None = None) -> nn.Module:
    """A folder's model for a task.

    Args:
        folder: holds config.json; weights are looked at only where it names no dtype.
        head: what the task adds.
        dtype: what to compute in; None for what `from_pretrained` would choose.

    Returns:
        The model in eval mode, parameters on meta.

    Raises:
        InputError: there is no such folder or configuration, or the task takes something else.
        WeightsError: the configuration names no dtype, and the weights are missing or damaged.
    """
    model = _pretrained(folder, head, dtype)
    if head.wrapper is MeanPooling and model.main_input_name != "input_ids":
        raise InputError(
            f"feature-extraction takes text, found {folder}, a {type(model).__name__}, which takes "
            f"{model.main_input_name}; give --task image-classification or raw"
        )
    return (head.wrapper(model) if head.wrapper else model).eval()


def require_config(folder: Path) -> None:
    """Refuse what is no model's folder.

    Raises:
        InputError: it has no config.json.
    """
    if not (folder / "config.json").is_file():
        script = f"; for a function in it, give {folder.stem}:function" * (folder.suffix == ".py")
        raise InputError(
            f"no config.json in {folder}, expected a Hugging Face model's folder; download the "
            f"whole folder, check the path, or give package.module:factory{script}"
        )


def stored_weights(folder: Path, module: nn.Module, head: Head) -> StoredWeights:
    """Where a folder's weights lie; nothing is looked for before they are asked for.

    Args:
        folder: the model's folder.
        module: what `build` made of it.
        head: what the task added.

    Returns:
        The weights, by the module's names.
    """
    from pipepar.model.weights.renaming import (
        TransformersNames,  # transformers takes seconds to import
    )

    wrapped = head.wrapper is not None
    model: Any = module.model if wrapped else module
    names = TransformersNames(model, _WRAPPER if wrapped else "")
    return StoredWeights(weights_file(folder), names, cast=True)


def weights_file(folder: Path) -> Path:
    """The file, or the index of the shards, that holds a folder's weights.

    Returns:
        The best there is; where there is none, the one that should be there.
    """
    found = (folder / name for name in WEIGHT_FILES if (folder / name).is_file())
    return next(found, folder / WEIGHT_FILES[0])


def dtype_of(folder: Path, config: PreTrainedConfig) -> torch.dtype | None:
    """The dtype to compute in: the configuration's, or that of the first weight by name.

    Where there are no weights either, as in a folder to plan for, it is None: torch's default.

    Raises:
        WeightsError: the configuration names none, and the weights are damaged.
    """
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        return None
    checkpoint = open_checkpoint(weights_file(folder))
    dtypes = (checkpoint.locate(name).spec.dtype for name in sorted(checkpoint.names))
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)


def _pretrained(folder: Path, head: Head, dtype: torch.dtype | None) -> PreTrainedModel:
    require_config(folder)
    import transformers  # takes seconds; others need not wait

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if getattr(config, "quantization_config", None):
            raise InputError(
                f"{folder} is quantized, expected weights that torch computes with as they are; "
                f"use the checkpoint that it was made of"
            )
        dtype = dtype or dtype_of(folder, config)
        config.use_cache = False  # what a decoder keeps for its next token would be an output
        factory = _factory(transformers, config, head)
        with params_on_meta():
            model: PreTrainedModel = factory(config, dtype=dtype)
    except (PipeparError, MemoryError):
        raise
    except Exception as error:  # a configuration is wrong in as many ways as it has fields
        raise InputError(
            f"{folder / 'config.json'} describes no model that the installed transformers can "
            f"build for this task ({type(error).__name__}: {shorten(str(error), 300)}); check its "
            f"model_type and --task, or upgrade transformers"
        ) from error
    _keep_precision(model, dtype)
    _tell_padding(model)
    return model


def _factory(transformers: Any, config: PreTrainedConfig, head: Head) -> Any:
    if head.auto_class:
        return getattr(transformers, head.auto_class).from_config
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)._from_config
    return transformers.AutoModel.from_config


def _tell_padding(model: PreTrainedModel) -> None:
    """Decoders were trained without padding; a tokenizer that has none pads with the end's token.

    Only after the model is built, since an embedding would take the number for one of its own.
    """
    end = getattr(model.config, "eos_token_id", None)
    if getattr(model.config, "pad_token_id", None) is None and isinstance(end, int):
        model.config.pad_token_id = end


def _keep_precision(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Leave in float32 what the class says suffers from less, as `from_pretrained` does."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype) if dtype else {}
    for name, parameter in list(model.named_parameters()):
        for pattern, wanted in plan.items():
            if re.search(pattern.replace("*", ".*"), name):
                owner, _, leaf = name.rpartition(".")
                precise = nn.Parameter(parameter.detach().to(wanted), parameter.requires_grad)
                setattr(model.get_submodule(owner), leaf, precise)
