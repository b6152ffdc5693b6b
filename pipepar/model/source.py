"""What the user named becomes a model without weights, and the place where they lie."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipepar.errors import InputError, WeightsError
from pipepar.model.fakes import params_on_meta
from pipepar.model.hollow import hollow
from pipepar.model.tasks import MeanPooling
from pipepar.model.weights import ModuleWeights, Naming, SafetensorsWeights, Weights

TASKS = ("feature-extraction",)


@dataclass(frozen=True, slots=True)
class Source:
    """A model whose weights have not been read yet."""

    name: str
    """What to call it in messages."""
    module: nn.Module
    """The model in eval mode, parameters on meta."""
    weights: Weights
    """Where its weights lie."""


def from_module(module: nn.Module) -> Source:
    """A model that exists in the user's script. *Local.*

    Args:
        module: the model with its values; never modified, its weights are not copied.

    Returns:
        The source.

    Raises:
        InputError: it is no module, or cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"found a {type(module).__name__}, expected an nn.Module; give the model itself"
        )
    return Source(type(module).__name__, hollow(module).eval(), ModuleWeights(module))


def from_factory(name: str, weights: Path | None) -> Source:
    """A model that a function of the user's makes. *Local.*

    Args:
        name: package.module:factory; modules in the working directory can be imported. The
            factory is called without arguments.
        weights: a safetensors file, or the index of several; None to take the values that the
            factory gives.

    Returns:
        The source; with `weights`, the model's parameters never take memory.

    Raises:
        InputError: the factory does not exist, cannot be called or returns no module.
        WeightsError: the file is missing or damaged.
    """
    factory = _factory(name)
    if weights is None:
        made = _module(factory(), name)
        return Source(name, hollow(made).eval(), ModuleWeights(made))
    stored = SafetensorsWeights(weights)
    with params_on_meta():
        made = _module(factory(), name)
    return Source(name, made.eval(), stored)


def from_huggingface(folder: Path | str, task: str) -> Source:
    """A model in a folder as `save_pretrained` writes it. *Local.*

    Args:
        folder: holds config.json and model.safetensors or its shards with their index.
        task: what the model is to do, by Hugging Face's name: "feature-extraction".

    Returns:
        The source; its dtype is the one that `from_pretrained` would choose.

    Raises:
        InputError: there is no such folder or configuration, or the task is not known.
        WeightsError: the weights are missing or damaged.
    """
    folder = Path(folder)
    if task not in TASKS:
        raise InputError(f"found task {task!r}, expected one of {', '.join(TASKS)}; give --task")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"no config.json in {folder}, expected a Hugging Face model's folder; "
            f"download the whole folder, or give package.module:factory"
        )
    from transformers import AutoConfig, AutoModel  # takes seconds; others need not wait

    path = _huggingface_weights(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        dtype = config.dtype or SafetensorsWeights(path).floating_dtype()
        with params_on_meta():
            model = AutoModel.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise InputError(
            f"{folder / 'config.json'} describes no model that the installed transformers can "
            f"build ({error}); check its model_type, or upgrade transformers"
        ) from error
    naming = Naming(wrapper="model.", base=model.base_model_prefix)
    stored = SafetensorsWeights(path, naming, cast=True)
    return Source(folder.name or str(folder), MeanPooling(model).eval(), stored)


def _huggingface_weights(folder: Path) -> Path:
    names = ("model.safetensors", "model.safetensors.index.json")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"no weights in {folder}, expected {names[0]} or {names[1]}; if it has "
        f"pytorch_model.bin, load it with transformers and save_pretrained() it again"
    )


def _factory(name: str) -> Callable[[], Any]:
    path, separator, attribute = name.partition(":")
    if not (path and separator and attribute):
        raise InputError(f"found model {name!r}, expected package.module:factory; name both")
    # Commands installed by pip do not search the working directory, scripts do.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"no module {error.name!r} for model {name!r}, expected one that Python can import; "
            f"start in its directory, or set PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(
                f"no {attribute!r} in module {path!r}, expected a function that makes the model; "
                f"check the name after the colon"
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{name} is a {type(found).__name__}, expected a function that makes the model; "
            f"wrap it in a function without arguments"
        )
    return found  # type: ignore[no-any-return]


def _module(made: Any, name: str) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{name} returned a {type(made).__name__}, expected an nn.Module; return the model"
        )
    return made
