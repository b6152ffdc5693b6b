"""The model behind a plain call: tensors in, a tuple of values out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from pipepar.errors import CaptureError, InputError
from pipepar.model.capture.containers import flatten
from pipepar.model.capture.signature import ConstantInput, OutputTemplate, flatten_call

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_CONSTANTS = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class FlatCall(nn.Module):
    """Calls a model with tensors, in the place of the tensors of an example.

    Args:
        model: the model.
        args: the example's positional arguments.
        kwargs: the example's keyword arguments.

    Raises:
        InputError: the model's forward does not take these arguments.
        CaptureError: an argument is an array that is no tensor.
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        _check_parameters(model, args, kwargs)
        self.model = model
        self.training = model.training
        leaves, self.structure = flatten_call(args, kwargs)
        self.leaves = tuple(leaves)
        self.names = _input_names(model, args, kwargs)
        self.keywords = tuple(kwargs)
        self.output = Output()
        for name, leaf in zip(self.names, leaves, strict=True):
            _check_argument(name, leaf)

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        """Rebuild the call, and flatten what it returns."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, torch.Tensor) else x for x in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return self.output.flatten(self.model(*args, **kwargs))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The example's tensors by name, in order."""
        named = zip(self.names, self.leaves, strict=True)
        return {name: leaf for name, leaf in named if isinstance(leaf, torch.Tensor)}


class Output:
    """How a traced output nests; its leaves that are no values of the graph are kept here."""

    def __init__(self) -> None:
        self._structure = pytree.tree_flatten(None)[1]
        self._leaves: list[ConstantInput | None] = []

    def flatten(self, output: Any) -> tuple[Any, ...]:
        """Take an output apart.

        Args:
            output: what the model returned.

        Returns:
            Its tensors and sizes.

        Raises:
            CaptureError: it contains something of a class that cannot be taken apart.
        """
        leaves, self._structure = flatten(output)
        self._leaves = [None if _is_value(leaf) else constant(leaf) for leaf in leaves]
        return tuple(leaf for leaf in leaves if _is_value(leaf))

    def template(self, results: Sequence[Any]) -> tuple[tuple[str, ...], OutputTemplate]:
        """How to rebuild the output from the graph.

        Args:
            results: what became of each value that `flatten` returned: a node, or a number where
                tracing fixed a size.

        Returns:
            Names of the values needed, each once, and the template that takes them in this order.
        """
        given = iter(results)
        leaves = [next(given) if leaf is None else leaf for leaf in self._leaves]
        leaves = [x if isinstance(x, (fx.Node, ConstantInput)) else constant(x) for x in leaves]
        names = tuple(dict.fromkeys(x.name for x in leaves if isinstance(x, fx.Node)))
        places = [names.index(x.name) if isinstance(x, fx.Node) else x for x in leaves]
        return names, OutputTemplate(self._structure, tuple(places))


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (torch.Tensor, *_SYMBOLIC))


def constant(leaf: Any) -> ConstantInput:
    """A leaf of an output that is no tensor.

    Args:
        leaf: what the model returned at this place.

    Returns:
        The leaf as a part of the graph.

    Raises:
        CaptureError: it is no plain value.
    """
    if not isinstance(leaf, _CONSTANTS):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        remedy = "return its tensors instead"
        if kind.endswith("Cache"):
            remedy = "a cache serves generation only: set model.config.use_cache = False"
        raise CaptureError(
            f"the model's output contains a {kind}, expected tensors in tuples, lists, dicts or "
            f"dataclasses; {remedy}"
        )
    return ConstantInput("output", leaf)


def _check_parameters(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [*(f"{len(args)} positional" for _ in args[:1]), *kwargs]
        raise InputError(
            f"the input gives {', '.join(given) or 'nothing'}, but {type(module).__name__}.forward "
            f"takes {signature} ({error}); name the arrays of an .npz or .safetensors file after "
            f"the parameters, or pass them in that order"
        ) from error


def _check_argument(name: str, leaf: Any) -> None:
    if hasattr(leaf, "__array__") and not isinstance(leaf, torch.Tensor):
        raise CaptureError(
            f"{name} of the example is a {type(leaf).__name__}, expected a tensor; "
            f"convert it with torch.as_tensor"
        )


def _input_names(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each leaf of the call: the parameter's, and the path inside it."""
    named = dict(zip(positional(module, len(args)), args, strict=True))
    paths = [path for part in (named, dict(kwargs)) for path, _ in _leaves(part)]
    words = [re.sub(r"\W+", "_", pytree.keystr(path)).strip("_") for path in paths]
    return [word if word.isidentifier() else f"input_{word}" for word in words]


def positional(module: nn.Module, count: int) -> list[str]:
    """Names of the first parameters of a module's forward.

    Args:
        module: the module.
        count: how many positional arguments it is called with.

    Returns:
        As many names; made up where forward takes any number.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return names + [f"arg{index}" for index in range(len(names), count)]


def _leaves(part: dict[str, Any]) -> list[tuple[pytree.KeyPath, Any]]:
    return pytree.tree_flatten_with_path(part)[0]
