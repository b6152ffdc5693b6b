"""What the user named becomes a model without weights, and the place where they lie."""

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
    """A model whose weights have not been read yet."""

    name: str
    """What to call it in messages."""
    module: nn.Module
    """The model in eval mode, parameters on meta."""
    weights: ModuleWeights | StoredWeights
    """Where its weights lie."""


def open_source(
    model: str,
    head: Head = EMBEDDING,
    weights: Path | None = None,
    values: bool = True,
    dtype: torch.dtype | None = None,
) -> Source:
    """A model by the name that the command line takes.

    Args:
        model: a Hugging Face folder, an exported program (.pt2), or package.module:factory.
        head: what the task adds to a folder's model; sentence embeddings by default.
        weights: a checkpoint for a factory's model; None to take the values that it gives.
        values: whether such a factory is to make its values in this process.
        dtype: what to compute in; None for what the configuration or the factory says.

    Returns:
        The source.

    Raises:
        InputError: there is no such model, or an option that does not go with it.
        WeightsError: its weights are missing or damaged, as far as that is known already.
    """
    if is_factory(model):
        return from_factory(model, weights, values, dtype)
    if weights is not None:
        raise InputError(
            f"--weights {weights} goes with a factory, but {model} brings its own weights; leave "
            "the option out"
        )
    if Path(model).suffix != ".pt2":
        return from_huggingface(model, head, dtype)
    if dtype is not None:
        raise InputError(
            f"found --dtype {str(dtype).removeprefix('torch.')} for {model}, which computes in "
            f"what it was exported with; leave the option out, or export the model again"
        )
    return from_exported(Path(model))


def is_factory(model: str) -> bool:
    """Whether a model is named as package.module:factory."""
    return ":" in model and not Path(model).exists()


def from_module(module: nn.Module) -> Source:
    """A model that exists in the user's script.

    Args:
        module: the model with its values; never modified, its weights are not copied. On a rank
            that gets its weights from another, its parameters may be on meta.

    Returns:
        The source.

    Raises:
        InputError: it is no module, or cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"found a {type(module).__name__}, expected an nn.Module; give the model itself"
        )
    return Source(type(module).__name__, to_meta(module).eval(), ModuleWeights(module))


def from_factory(
    name: str, weights: Path | None, values: bool = True, dtype: torch.dtype | None = None
) -> Source:
    """A model that a function of the user's makes.

    Args:
        name: package.module:factory; modules in the working directory can be imported. The
            factory is called without arguments.
        weights: a checkpoint with the model's own names; None to take the values that the factory
            gives.
        values: whether these are wanted in this process.
        dtype: what its floating-point parameters and buffers become; None to leave them. A
            checkpoint is then cast to it.

    Returns:
        The source; with `weights`, or without `values`, its parameters never take memory.

    Raises:
        InputError: the factory does not exist, cannot be called or returns no module.
        WeightsError: the checkpoint is missing or damaged.
    """
    factory = partial(_made, import_path(name, UserFunction.FACTORY), name, dtype)
    if weights is None and values:
        made = factory()
        return Source(name, to_meta(made).eval(), ModuleWeights(made))
    made = build_on_meta(factory, name, alone=weights is not None).eval()
    if weights is None:
        return Source(name, made, ModuleWeights(made))
    stored = StoredWeights(weights, SameNames(_names(made)), cast=dtype is not None)
    return Source(name, made, stored)


def from_huggingface(folder: Path | str, head: Head, dtype: torch.dtype | None = None) -> Source:
    """A model in a folder as `save_pretrained` writes it.

    Args:
        folder: holds config.json, and the weights in one file or in shards with an index.
        head: what the task adds to the model.
        dtype: what to compute in; None for what `from_pretrained` would choose.

    Returns:
        The source.

    Raises:
        InputError: there is no such folder or configuration, or the task takes something else.
        WeightsError: the configuration names no dtype, and the weights are missing or damaged.
    """
    folder = Path(folder)
    module = build(folder, head, dtype)
    return Source(folder.name or str(folder), module, stored_weights(folder, module, head))


def from_exported(path: Path) -> Source:
    """A program that `torch.export.save` wrote.

    Args:
        path: the .pt2 file.

    Returns:
        The source.

    Raises:
        InputError: there is no such file, or torch cannot read it.
    """
    if not path.is_file():
        raise InputError(f"no exported program at {path}, expected a .pt2 file; check the path")
    module = open_exported(path)
    return Source(path.name, module, StoredWeights(path, SameNames(_names(module))))


def _names(module: nn.Module) -> set[str]:
    """What a state dict may hold, and what older ones held besides."""
    return {*named_tensors(module), *module.state_dict()}


def _made(factory: Any, name: str, dtype: torch.dtype | None) -> nn.Module:
    made = factory()
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{name} returned a {type(made).__name__}, expected an nn.Module; return the model"
        )
    return made if dtype is None else made.to(dtype)
