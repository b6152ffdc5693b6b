"""Opens a model without its weights, and the source of these weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipepar.errors import InputError
from pipepar.model.module_tensors import named_tensors
from pipepar.model.source.exported_program import open_exported
from pipepar.model.source.heads import EMBEDDING, Head
from pipepar.model.source.huggingface import build, stored_weights
from pipepar.model.source.import_path import UserFunction, import_path
from pipepar.model.source.on_meta import build_on_meta
from pipepar.model.to_meta import to_meta
from pipepar.model.weights.recipes import SameNames
from pipepar.model.weights.weight_source import ModuleWeights, StoredWeights


@dataclass(frozen=True, slots=True)
class Source:
    """A model whose weights have not been read."""

    name: str
    """Its name in messages."""
    module: nn.Module
    """The model in eval mode, with its parameters on meta."""
    weights: ModuleWeights | StoredWeights
    """The source of its weights."""


def open_source(
    model: str,
    head: Head = EMBEDDING,
    weights: Path | None = None,
    values: bool = True,
    dtype: torch.dtype | None = None,
) -> Source:
    """Open a model that is named as on the command line.

    Args:
        model: a Hugging Face folder, an exported program (.pt2), or package.module:factory.
        head: the task's addition to a folder's model; sentence embeddings by default.
        weights: a checkpoint for a factory's model; None to use the values that it makes.
        values: whether this process needs the values that a factory makes.
        dtype: the dtype to compute in; None for that of the configuration or the factory.

    Returns:
        The model and the source of its weights.

    Raises:
        InputError: the model does not exist or cannot be opened, or an option does not apply to it.
        WeightsError: the checkpoint of a factory is missing or damaged; or a folder's configuration
            specifies no dtype, and its weights are missing or damaged.
    """
    if is_factory(model):
        return from_factory(model, weights, values, dtype)
    if weights is not None:
        raise InputError(
            f"found --weights {weights} for {model}, which contains its weights, expected a "
            "factory; leave the option out"
        )
    if Path(model).suffix != ".pt2":
        return from_huggingface(model, head, dtype)
    if dtype is not None:
        raise InputError(
            f"found --dtype {str(dtype).removeprefix('torch.')} for {model}, which computes in the "
            f"dtype that it was exported with; leave the option out, or export the model again"
        )
    return from_exported(Path(model))


def is_factory(model: str) -> bool:
    """Whether a MODEL argument contains a colon and is not an existing path."""
    return ":" in model and not Path(model).exists()


def from_module(module: nn.Module) -> Source:
    """Open a model of the user's script.

    Args:
        module: the model with its values. It is never modified, and its weights are not copied. On
            a rank that receives its weights from another rank, its parameters may be on meta.

    Returns:
        A copy of the model on meta, and the source of its weights.

    Raises:
        InputError: the object is not an nn.Module, or cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"found a {type(module).__name__}, expected an nn.Module; pass the model itself"
        )
    return Source(type(module).__name__, to_meta(module).eval(), ModuleWeights(module))


def from_factory(
    name: str, weights: Path | None, values: bool = True, dtype: torch.dtype | None = None
) -> Source:
    """Open a model that a function of the user's makes.

    Args:
        name: package.module:factory; modules in the working directory can be imported. The
            factory is called without arguments.
        weights: a checkpoint with the model's own names; None to use the values that the factory
            makes.
        values: whether this process needs the values that the factory makes.
        dtype: the dtype to cast floating-point parameters, buffers and weights of the checkpoint
            to; None to cast nothing.

    Returns:
        The model and the source of its weights. With `weights`, or without `values`, its parameters
        never take memory.

    Raises:
        InputError: the factory does not exist, does not return an nn.Module, or fails without the
            values of its parameters. If it is called with values, its exceptions are not converted.
        WeightsError: the checkpoint is missing or damaged.
    """
    factory = partial(_call, import_path(name, UserFunction.FACTORY), name, dtype)
    if weights is None and values:
        made = factory()
        return Source(name, to_meta(made).eval(), ModuleWeights(made))
    made = build_on_meta(factory, name, check_buffers=weights is not None).eval()
    if weights is None:
        return Source(name, made, ModuleWeights(made))
    stored = StoredWeights(weights, SameNames(_names(made)), cast=dtype is not None)
    return Source(name, made, stored)


def from_huggingface(folder: Path | str, head: Head, dtype: torch.dtype | None = None) -> Source:
    """Open a model in a folder that `save_pretrained` wrote.

    Args:
        folder: contains config.json, and the weights in one file or in shards with an index.
        head: the task's addition to the model.
        dtype: the dtype to compute in; None for the one that `from_pretrained` would choose.

    Returns:
        The model and the source of its weights.

    Raises:
        InputError: the folder or its config.json does not exist, transformers cannot build the
            model, or the task needs a model with other inputs.
        WeightsError: the configuration specifies no dtype, and the weights are missing or damaged.
    """
    folder = Path(folder)
    module = build(folder, head, dtype)
    return Source(folder.name or str(folder), module, stored_weights(folder, module, head))


def from_exported(path: Path) -> Source:
    """Open a program that `torch.export.save` wrote.

    Args:
        path: the .pt2 file.

    Returns:
        The model and the source of its weights.

    Raises:
        InputError: the file does not exist, or torch cannot read it.
    """
    if not path.is_file():
        raise InputError(f"no exported program at {path}, expected a .pt2 file; check the path")
    module = open_exported(path)
    return Source(path.name, module, StoredWeights(path, SameNames(_names(module))))


def _names(module: nn.Module) -> set[str]:
    """Return the names of all parameters and buffers, and all names in the state dict."""
    return {*named_tensors(module), *module.state_dict()}


def _call(factory: Any, name: str, dtype: torch.dtype | None) -> nn.Module:
    """Call a factory, and cast its model to a dtype if one is given."""
    made = factory()
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{name} returned a {type(made).__name__}, expected an nn.Module; return the model"
        )
    return made if dtype is None else made.to(dtype)
