"""Builds the model of a folder that `save_pretrained` wrote, without its weights."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pipepar.errors import InputError, PipeparError
from pipepar.model.compat.transformers_internals import build_from_config, dtypes_by_pattern
from pipepar.model.source.heads import Head, MeanPooling
from pipepar.model.source.on_meta import params_on_meta
from pipepar.model.weights.checkpoint_formats import open_checkpoint
from pipepar.model.weights.renaming import TransformersNames
from pipepar.model.weights.weight_source import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHT_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files that may contain a folder's weights, in order of preference."""

# The prefix that the wrappers of heads.py add to the model's names.
_WRAPPER: Final = "model."


def build(folder: Path, head: Head, dtype: torch.dtype | None = None) -> nn.Module:
    """Build a folder's model for a task.

    Args:
        folder: contains config.json; the weights are opened only if neither that file nor `dtype`
            determines the dtype.
        head: the task's addition to the model.
        dtype: the dtype to compute in; None for the one that `from_pretrained` would choose.

    Returns:
        The model in eval mode, with its parameters on meta.

    Raises:
        InputError: the folder or its config.json does not exist, the model is quantized,
            transformers cannot build it, or the task needs a model with other inputs.
        WeightsError: the weights must be opened for the dtype, and are damaged or incomplete.
    """
    model = _pretrained(folder, head, dtype)
    if head.wrapper is MeanPooling and model.main_input_name != "input_ids":
        raise InputError(
            f"found {folder}, a {type(model).__name__} that takes {model.main_input_name}, "
            f"expected one that takes text for feature-extraction; give --task "
            f"image-classification or raw"
        )
    return (head.wrapper(model) if head.wrapper else model).eval()


def require_config(folder: Path) -> None:
    """Check that a folder contains config.json.

    Raises:
        InputError: the folder does not exist or has no config.json.
    """
    if not (folder / "config.json").is_file():
        script = f"; for a function in it, give {folder.stem}:function" * (folder.suffix == ".py")
        raise InputError(
            f"no config.json in {folder}, expected the folder of a Hugging Face model; download "
            f"the whole folder, check the path, or give package.module:factory{script}"
        )


def stored_weights(folder: Path, module: nn.Module, head: Head) -> StoredWeights:
    """Return the source of a folder's weights; it opens no file until it is used.

    Args:
        folder: the model's folder.
        module: the result of `build`.
        head: the head that `build` was called with.

    Returns:
        The weights, by the module's names.
    """
    wrapped = head.wrapper is not None
    model: Any = module.model if wrapped else module
    names = TransformersNames(model, _WRAPPER if wrapped else "")
    return StoredWeights(weights_file(folder), names, cast=True)


def weights_file(folder: Path) -> Path:
    """Return the file of a folder's weights, or the index of their shards.

    Returns:
        The first of `WEIGHT_FILES` that exists; if none exists, the path of the first one.
    """
    found = (folder / name for name in WEIGHT_FILES if (folder / name).is_file())
    return next(found, folder / WEIGHT_FILES[0])


def dtype_of(folder: Path, config: PreTrainedConfig) -> torch.dtype | None:
    """Return the configuration's dtype, or that of the first floating-point weight by name.

    Args:
        folder: the model's folder.
        config: its configuration.

    Returns:
        The dtype to compute in; None for torch's default, if the configuration names no dtype and
        the folder has no floating-point weights.

    Raises:
        WeightsError: the configuration names no dtype, and the weights are damaged or incomplete.
    """
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        return None
    checkpoint = open_checkpoint(weights_file(folder))
    dtypes = (checkpoint.locate(name).spec.dtype for name in sorted(checkpoint.names))
    return next((dtype for dtype in dtypes if dtype.is_floating_point), None)


def _pretrained(folder: Path, head: Head, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return the model without the head's wrapper, on meta and without a KV cache; see `build`."""
    require_config(folder)
    import transformers  # slow (seconds), and only needed for these models

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if getattr(config, "quantization_config", None):
            raise InputError(
                f"{folder} is quantized, expected weights that torch computes with unchanged; "
                f"use the checkpoint before its quantization"
            )
        dtype = dtype or dtype_of(folder, config)
        config.use_cache = False  # a KV cache would be an additional output
        build_model = _builder(transformers, config, head)
        with params_on_meta():
            model: PreTrainedModel = build_model(config, dtype=dtype)
    except (PipeparError, MemoryError):
        raise
    except Exception as error:  # a wrong configuration can raise any exception
        raise InputError(
            f"{folder / 'config.json'} describes no model that the installed transformers can "
            f"build for this task ({type(error).__name__}: {shorten(str(error), 300)}); check its "
            f"model_type and --task, or upgrade transformers"
        ) from error
    _keep_precision(model, dtype)
    _set_padding_token(model)
    return model


def _builder(transformers: Any, config: PreTrainedConfig, head: Head) -> Any:
    """Return the function that builds the model from a configuration and a dtype.

    The model's class is that of the head; else the first of the configuration's architectures that
    transformers has; else AutoModel.
    """
    if head.auto_class:
        return getattr(transformers, head.auto_class).from_config
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return partial(build_from_config, getattr(transformers, name))
    return transformers.AutoModel.from_config


def _set_padding_token(model: PreTrainedModel) -> None:
    """Set the padding token to the end token if the configuration has no padding token.

    Several end tokens (a list) change nothing. Decoders are trained without padding. The token is
    set after the model is built, since otherwise the embedding would treat its row as padding.
    """
    end = getattr(model.config, "eos_token_id", None)
    if getattr(model.config, "pad_token_id", None) is None and isinstance(end, int):
        model.config.pad_token_id = end


def _keep_precision(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Convert the parameters that need more precision than the model, as `from_pretrained` does."""
    dtypes = dtypes_by_pattern(model, dtype) if dtype else {}
    for name, parameter in list(model.named_parameters()):
        for pattern, precision in dtypes.items():
            if re.search(pattern.replace("*", ".*"), name):
                owner, _, leaf = name.rpartition(".")
                precise = nn.Parameter(parameter.detach().to(precision), parameter.requires_grad)
                setattr(model.get_submodule(owner), leaf, precise)
