"""Checks the model arguments of a Pipeline and opens the model's source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from pipepar.comm.group.launcher import is_launched_root
from pipepar.comm.world import World
from pipepar.engine.shared_source import SharedSource
from pipepar.errors import InputError, WeightsError
from pipepar.model.capture.sequential import Layers
from pipepar.model.source.on_meta import is_patched, params_on_meta
from pipepar.model.source.open_source import Source, from_module, is_factory, open_source
from pipepar.tasks.registry import find_task

ModelArgument: TypeAlias = nn.Module | Sequence[nn.Module] | Path | str
"""A model, its layers, or the name of a model as on the command line."""


@contextmanager
def values_on_root() -> Iterator[None]:
    """Build modules with values on rank 0 only; on other ranks their parameters are on meta.

    On other ranks, buffers keep their values, and moving a module to a device has no effect.
    Construct the Pipeline after this context; it sends each rank the weights of its stage.
    """
    if is_launched_root():
        yield
        return
    with params_on_meta():
        yield


def check_arguments(
    model: object, layers: object, micro_batch: int | None, depth: int | None
) -> None:
    """Raise an error if the arguments of a Pipeline are invalid.

    Args:
        model: an argument of `Pipeline`; None if not given, like the others.
        layers: see `Pipeline`.
        micro_batch: see `Pipeline`.
        depth: see `Pipeline`.

    Raises:
        InputError: model and layers are both given or both missing, a number is below 1, or
            `values_on_root` is still active.
    """
    if (model is None) == (layers is None):
        found = "neither a model nor layers" if model is None else "both a model and layers"
        raise InputError(
            f"found {found}, expected one of them; pass the model on every rank, built inside "
            f"pipepar.values_on_root() if only rank 0 is to hold its weights"
        )
    if is_patched():
        raise InputError(
            "found a Pipeline constructed inside values_on_root(), expected it after the context; "
            "leave the with statement first"
        )
    for name, number in (("micro_batch", micro_batch), ("depth", depth)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}, expected at least 1")


def open_shared(
    world: World, model: ModelArgument, task: str, weights: Path | None, dtype: torch.dtype | None
) -> SharedSource:
    """Open the source of the model that a script built or named. *Collective.*

    Args:
        world: all ranks.
        model: the same on every rank, except for the values of its weights.
        task: the task of a Hugging Face folder.
        weights: a checkpoint, for the name of a factory.
        dtype: the dtype of a model that is named; None for the model's own.

    Raises:
        InputError: `model` is not a model, does not exist or cannot be copied, or `dtype` is given
            for a module.
        WeightsError: parameters are on meta on rank 0, or weights are missing or damaged.
        PeerError: another rank raised one of these errors.
    """
    source = world.together(lambda: _source(world, model, task, weights, dtype))
    if isinstance(model, str | Path):
        return SharedSource(source, is_factory(str(model)) and weights is None)
    on_meta = _any_on_meta(model)
    world.together(lambda: _check_values(source, on_meta and world.is_root))
    anywhere = world.all_gather(json.dumps(on_meta))
    return SharedSource(source, any(map(json.loads, anywhere)))


def _source(
    world: World, model: ModelArgument, task: str, weights: Path | None, dtype: torch.dtype | None
) -> Source:
    if isinstance(model, str | Path):
        return open_source(
            str(model), find_task(task).head, weights, values=world.is_root, dtype=dtype
        )
    if dtype is not None:
        raise InputError(
            f"found dtype {dtype} for a module, expected it only for the name of a model; "
            f"call model.to({dtype})"
        )
    if isinstance(model, nn.Module):
        return from_module(model)
    if model and all(isinstance(layer, nn.Module) for layer in model):
        return from_module(Layers(*model))
    raise InputError(
        f"found a {type(model).__name__}, expected an nn.Module, layers=[nn.Module, ...] with at "
        f"least one, or the name of a model; pass one of these"
    )


def _any_on_meta(model: nn.Module | Sequence[nn.Module]) -> bool:
    modules = [model] if isinstance(model, nn.Module) else model
    return any(parameter.is_meta for module in modules for parameter in module.parameters())


def _check_values(source: Source, missing: bool) -> None:
    if missing:
        raise WeightsError(
            f"parameters of {source.name} are on meta on rank 0, expected values there; build the "
            f"model inside pipepar.values_on_root(), or on every rank"
        )
