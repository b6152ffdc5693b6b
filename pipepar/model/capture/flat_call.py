"""A model as a module that takes a flat list of tensors and returns a flat tuple of values."""

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
from pipepar.model.capture.signature import ConstantInput, OutputTemplate

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_CONSTANTS = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


class FlatCall(nn.Module):
    """A model with the call of an example, in which tensors can be replaced.

    Args:
        model: the model.
        args: the example's positional arguments.
        kwargs: the example's keyword arguments.

    Raises:
        InputError: the model's forward does not take these arguments.
        CaptureError: an argument is an array other than a torch tensor.
    """

    def __init__(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        _check_parameters(model, args, kwargs)
        self.model = model
        self.training = model.training
        leaves, self.structure = flatten((tuple(args), dict(kwargs)))
        self.leaves = tuple(leaves)
        self.names = _input_names(model, args, kwargs)
        self.keywords = tuple(kwargs)
        self.output = Output()
        for name, leaf in zip(self.names, leaves, strict=True):
            _check_argument(name, leaf)

    def forward(self, *tensors: torch.Tensor) -> tuple[Any, ...]:
        """Call the model with these tensors and return its output, flattened."""
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(x, torch.Tensor) else x for x in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return self.output.flatten(self.model(*args, **kwargs))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The example's tensors by name, in order."""
        named = zip(self.names, self.leaves, strict=True)
        return {name: leaf for name, leaf in named if isinstance(leaf, torch.Tensor)}


class Output:
    """The structure of a traced output, and the leaves of it that are not values of the graph."""

    def __init__(self) -> None:
        self._structure = pytree.tree_flatten(None)[1]
        self._leaves: list[ConstantInput | None] = []

    def flatten(self, output: Any) -> tuple[Any, ...]:
        """Return the tensors and symbolic numbers of an output, and store its structure.

        Args:
            output: the model's output.

        Returns:
            The tensors and symbolic numbers, in order.

        Raises:
            CaptureError: the output contains an object of an unsupported class.
        """
        leaves, self._structure = flatten(output)
        self._leaves = [None if _is_value(leaf) else constant(leaf) for leaf in leaves]
        return tuple(leaf for leaf in leaves if _is_value(leaf))

    def template(self, results: Sequence[Any]) -> tuple[tuple[str, ...], OutputTemplate]:
        """Return the outputs of the graph and the template that rebuilds the model's output.

        Args:
            results: for each value that `flatten` returned its node, or a number if tracing
                fixed it.

        Returns:
            The names of the outputs, each once, and the template for them in this order.
        """
        remaining = iter(results)
        leaves = [next(remaining) if leaf is None else leaf for leaf in self._leaves]
        leaves = [x if isinstance(x, (fx.Node, ConstantInput)) else constant(x) for x in leaves]
        names = tuple(dict.fromkeys(x.name for x in leaves if isinstance(x, fx.Node)))
        indices = [names.index(x.name) if isinstance(x, fx.Node) else x for x in leaves]
        return names, OutputTemplate(self._structure, tuple(indices))


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (torch.Tensor, *_SYMBOLIC))


def constant(leaf: Any) -> ConstantInput:
    """Return a leaf of an output that is not a tensor as a constant.

    Args:
        leaf: the leaf.

    Returns:
        The constant.

    Raises:
        CaptureError: the leaf is not a plain Python value.
    """
    if not isinstance(leaf, _CONSTANTS):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        remedy = "return its tensors instead"
        if kind.endswith("Cache"):
            remedy = "a cache is for generation only: set model.config.use_cache = False"
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
        given = [f"{len(args)} positional", *kwargs] if args else [*kwargs]
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
    """Return a name for each leaf of the call: its parameter and its path in the argument."""
    named = dict(zip(positional(module, len(args)), args, strict=True))
    paths = [
        path
        for arguments in (named, dict(kwargs))
        for path, _ in pytree.tree_flatten_with_path(arguments)[0]
    ]
    words = [re.sub(r"\W+", "_", pytree.keystr(path)).strip("_") for path in paths]
    return [word if word.isidentifier() else f"input_{word}" for word in words]


def positional(module: nn.Module, count: int) -> list[str]:
    """Return the names of the first parameters of a module's forward.

    Args:
        module: the module.
        count: the number of positional arguments.

    Returns:
        `count` names; arg0, arg1 and so on for arguments of *args.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return names + [f"arg{index}" for index in range(len(names), count)]
