"""How a model is built without memory for its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from pipepar.errors import InputError
from pipepar.model.fakes import meta_parameter
from pipepar.model.tensors import passing_buffers


@contextmanager
def params_on_meta() -> Iterator[None]:
    """Modules built inside have their parameters on meta; buffers keep their values. *Local.*

    Buffers stay real because a checkpoint may not hold them: position ids, rotary frequencies.
    Moving a module to a device does nothing, since where it computes is for the pipeline to say.
    """
    kept = {name: getattr(nn.Module, name) for name in ("register_parameter", "to", "cpu", "cuda")}
    made = WeakIdKeyDictionary()  # one parameter under two names stays one

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param not in made:
            made[param] = meta_parameter(param)
        kept["register_parameter"](self, name, None if param is None else made[param])

    def cast(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        _, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        options = {"dtype": dtype, "memory_format": layout}
        given = {name: value for name, value in options.items() if value is not None}
        return kept["to"](self, **given) if given else self

    def stay(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return self

    patches = {"register_parameter": register_on_meta, "to": cast, "cpu": stay, "cuda": stay}
    try:
        for name, patch in patches.items():
            setattr(nn.Module, name, patch)
        yield
    finally:
        for name, method in kept.items():
            setattr(nn.Module, name, method)


def build_on_meta(make: Callable[[], nn.Module], name: str) -> nn.Module:
    """Call a factory for the structure of its model alone. *Local.*

    Args:
        make: the factory; called twice where the model has buffers that no checkpoint holds.
        name: what to call it in messages.

    Returns:
        The model, its parameters on meta.

    Raises:
        InputError: the factory needs values that are not there, or draws random numbers for a
            buffer: without the parameters' own draws these come out otherwise than they should.
    """
    with params_on_meta():
        try:
            made = make()
            passing = passing_buffers(made)
            other = passing_buffers(_reseeded(make)) if passing else {}
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{name} failed while its parameters had no values "
                f"({type(error).__name__}: {error}); it is called so wherever it is not for its "
                f"values; let it build the model without reading its parameters"
            ) from error
    for key, buffer in passing.items():
        if key in other and not torch.equal(buffer, other[key]):
            raise InputError(
                f"the buffer {key} of {name} is random and not saved with the model, expected one "
                f"that is the same in every process; register it with persistent=True"
            )
    return made


def _reseeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Call a factory with other random numbers, whatever seed it sets itself."""
    seed = torch.manual_seed
    with torch.random.fork_rng(devices=()):
        generator = seed(torch.initial_seed() + 1)
        torch.manual_seed = lambda _: generator  # type: ignore[assignment]
        try:
            return make()
        finally:
            torch.manual_seed = seed
