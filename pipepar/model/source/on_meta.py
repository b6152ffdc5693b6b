"""How a model is built without memory for its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from pipepar.errors import InputError, PipeparError
from pipepar.model.fake_tensors import meta_parameter
from pipepar.model.module_tensors import non_persistent_buffers, same_values

_REGISTER: Final = nn.Module.register_parameter


@contextmanager
def params_on_meta() -> Iterator[None]:
    """Modules built inside have their parameters on meta; buffers keep their values.

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


def is_patched() -> bool:
    """Whether the caller is inside `params_on_meta`."""
    return nn.Module.register_parameter is not _REGISTER


def build_on_meta(make: Callable[[], nn.Module], name: str, alone: bool) -> nn.Module:
    """Call a factory for the structure of its model only.

    Args:
        make: the factory.
        name: what to call it in messages.
        alone: whether nobody sends this process the buffers that no checkpoint holds. They must
            then come out right by themselves, so the factory is called twice if there are any.

    Returns:
        The model, its parameters on meta.

    Raises:
        InputError: the factory needs values that are not there, or draws random numbers for a
            buffer: without the parameters' own draws these come out otherwise than they should.
    """
    with params_on_meta():
        try:
            made = make()
            passing = non_persistent_buffers(made) if alone else {}
            with _OtherNumbers():
                other = non_persistent_buffers(make()) if passing else {}
        except PipeparError:
            raise
        except Exception as error:  # whatever a function of the user's does without values
            raise InputError(
                f"{name} failed while its parameters had no values "
                f"({type(error).__name__}: {error}); it is called so wherever it is not for its "
                f"values; let it build the model without reading its parameters"
            ) from error
    for key, buffer in passing.items():
        if buffer.is_meta or key not in other or not same_values(buffer, other[key]):
            raise InputError(
                f"the buffer {key} of {name} is random or computed from a parameter, and not saved "
                f"with the model, expected one that is the same in every process; register it with "
                f"persistent=True"
            )
    return made


class _OtherNumbers(TorchDispatchMode):
    """Inside, every random draw differs from what it would have been, whoever seeds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seeds = itertools.count(torch.initial_seed() % 2**31 + 1)
        self._state = torch.get_rng_state()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_rng_state(self._state)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.default_generator.manual_seed(next(self._seeds))
        return func(*args, **(kwargs or {}))
