"""Builds a model without memory for its parameters."""

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
from pipepar.model.compat.torch_internals import cast_options
from pipepar.model.fake_tensors import meta_parameter
from pipepar.model.module_tensors import non_persistent_buffers, same_values

_REGISTER: Final = nn.Module.register_parameter


@contextmanager
def params_on_meta() -> Iterator[None]:
    """Put the parameters of modules that are built in this context on meta.

    Buffers keep their values, because a checkpoint may not contain them; examples are position ids
    and rotary frequencies. Moving a module to a device has no effect, since the plan determines
    the device.
    """
    originals = {
        name: getattr(nn.Module, name) for name in ("register_parameter", "to", "cpu", "cuda")
    }
    on_meta = WeakIdKeyDictionary()  # one parameter under two names stays one

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param not in on_meta:
            on_meta[param] = meta_parameter(param)
        originals["register_parameter"](self, name, None if param is None else on_meta[param])

    def cast(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        options = cast_options(args, kwargs)
        return originals["to"](self, **options) if options else self

    def stay(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return self

    patches = {"register_parameter": register_on_meta, "to": cast, "cpu": stay, "cuda": stay}
    try:
        for name, patch in patches.items():
            setattr(nn.Module, name, patch)
        yield
    finally:
        for name, method in originals.items():
            setattr(nn.Module, name, method)


def is_patched() -> bool:
    """Whether the caller is inside `params_on_meta`."""
    return nn.Module.register_parameter is not _REGISTER


def build_on_meta(make: Callable[[], nn.Module], name: str, check_buffers: bool) -> nn.Module:
    """Call a factory for the structure of its model, without the values of its parameters.

    Args:
        make: the factory.
        name: the factory's name in messages.
        check_buffers: whether this process uses the values that the factory gives to buffers
            which no checkpoint contains. They must be the same in each process, so the factory is
            called a second time if it makes any. False where another rank sends these values.

    Returns:
        The model, with its parameters on meta.

    Raises:
        InputError: the factory fails without the values of its parameters; or, with
            `check_buffers`, a buffer that no checkpoint contains is random or computed from a
            parameter.
    """
    with params_on_meta():
        try:
            made = make()
            buffers = non_persistent_buffers(made) if check_buffers else {}
            with _DifferentDraws():
                others = non_persistent_buffers(make()) if buffers else {}
        except PipeparError:
            raise
        except Exception as error:  # the user's function can raise any exception
            raise InputError(
                f"{name} failed while its parameters had no values "
                f"({type(error).__name__}: {error}), expected a factory that does not read them, "
                f"since at most one rank keeps their values; let it only build the model"
            ) from error
    for key, buffer in buffers.items():
        if buffer.is_meta or key not in others or not same_values(buffer, others[key]):
            raise InputError(
                f"the buffer {key} of {name} is random or computed from a parameter, and not saved "
                f"with the model, expected one that is the same in every process; register it with "
                f"persistent=True"
            )
    return made


class _DifferentDraws(TorchDispatchMode):
    """A context in which random draws on the CPU differ from those outside, even with a set seed.

    At its end the state of the generator is restored.
    """

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
