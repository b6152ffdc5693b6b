"""What a Pipeline was given becomes a source, with its values where they are."""

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

Given: TypeAlias = nn.Module | Sequence[nn.Module] | Path | str
"""A model, its layers, or its name."""


@contextmanager
def values_on_root() -> Iterator[None]:
    """Modules built inside have values on rank 0 only; elsewhere they take no memory.

    What it holds reaches the others when a Pipeline is made, outside of this context.
    """
    if is_launched_root():
        yield
        return
    with params_on_meta():
        yield


def check_given(model: object, layers: object, micro_batch: int | None, depth: int | None) -> None:
    """Refuse what a Pipeline cannot be made of.

    Raises:
        InputError: there is not exactly one of a model and layers, a number is below 1, or this is
            inside of `values_on_root`.
    """
    if (model is None) == (layers is None):
        found = "neither a model nor layers" if model is None else "both a model and layers"
        raise InputError(
            f"found {found}, expected one of them; give the model on every rank, built inside "
            f"pipepar.values_on_root() if only rank 0 is to hold its weights"
        )
    if is_patched():
        raise InputError("found a Pipeline inside values_on_root(), expected it after; leave that")
    for name, number in (("micro_batch", micro_batch), ("depth", depth)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}, expected at least 1")


def given_source(
    world: World, given: Given, task: str, weights: Path | None, dtype: torch.dtype | None
) -> SharedSource:
    """The model that a script named or built. *Collective.*

    Args:
        world: all ranks.
        given: the same on every rank, but for the values of a module's weights.
        task: what a Hugging Face folder is to do.
        weights: a checkpoint for a factory that is named.
        dtype: what a model that is named computes in; None to leave it to the model.

    Raises:
        InputError: it is no model, or cannot be copied.
        WeightsError: it is on meta on rank 0 too.
    """
    source = world.together(lambda: _source(world, given, task, weights, dtype))
    if isinstance(given, str | Path):
        return SharedSource(source, is_factory(str(given)) and weights is None)
    without_values = _is_on_meta(given)
    world.together(lambda: _require_values(source) if without_values and world.is_root else None)
    anywhere = world.all_gather(json.dumps(without_values))
    return SharedSource(source, any(map(json.loads, anywhere)))


def _source(
    world: World, given: Given, task: str, weights: Path | None, dtype: torch.dtype | None
) -> Source:
    if isinstance(given, str | Path):
        return open_source(
            str(given), find_task(task).head, weights, values=world.is_root, dtype=dtype
        )
    if dtype is not None:
        raise InputError(f"found dtype {dtype} for a model that exists; call model.to({dtype})")
    if isinstance(given, nn.Module):
        return from_module(given)
    if given and all(isinstance(layer, nn.Module) for layer in given):
        return from_module(Layers(*given))
    raise InputError(
        f"found a {type(given).__name__}, expected an nn.Module, layers=[nn.Module, ...] with at "
        f"least one, or the name of a model; give one of these"
    )


def _is_on_meta(given: nn.Module | Sequence[nn.Module]) -> bool:
    modules = [given] if isinstance(given, nn.Module) else given
    return any(parameter.is_meta for module in modules for parameter in module.parameters())


def _require_values(source: Source) -> None:
    raise WeightsError(
        f"the parameters of {source.name} are on meta on rank 0, expected values there; build the "
        f"model inside pipepar.values_on_root(), or on every rank"
    )
