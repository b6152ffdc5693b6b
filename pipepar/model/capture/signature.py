"""What a captured graph takes and gives: the model's call, flattened, and its output, rebuilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sympy  # type: ignore[import-untyped]
import torch
import torch.utils._pytree as pytree

from pipepar.errors import InputError
from pipepar.model.capture.containers import flatten

Value: TypeAlias = torch.Tensor | int | float | bool | None
# An expression over the symbols of free sizes; sympy comes without types.
Expression: TypeAlias = Any
Size: TypeAlias = int | Expression


@dataclass(frozen=True, slots=True)
class TensorInput:
    """One tensor among the model's inputs."""

    name: str
    """Its name in the graph."""
    dtype: torch.dtype
    """Element type it must have."""
    sizes: tuple[Size, ...] | None
    """For each dimension a fixed size, or the symbol of a free one; None leaves all free."""
    rank: int
    """Number of dimensions it must have."""


@dataclass(frozen=True, slots=True)
class ConstantInput:
    """An input that is no tensor: the graph holds for this value only."""

    name: str
    """Its name, for messages."""
    value: Any
    """The value of the example."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The structure of the model's arguments, and what the graph requires of each."""

    structure: pytree.TreeSpec
    """How (args, kwargs) nest."""
    keywords: tuple[str, ...]
    """Names of the keyword arguments, in the example's order."""
    leaves: tuple[TensorInput | ConstantInput, ...]
    """Every leaf, in the structure's order."""
    conditions: tuple[Expression, ...] = ()
    """What the symbols must fulfil, for the graph to be what the model would compute."""
    seen: dict[tuple[torch.Size, ...], None] = field(default_factory=dict, compare=False)
    """Combinations of sizes that were found valid; checking takes longer than remembering."""
    tensors: tuple[TensorInput, ...] = field(init=False)
    """The leaves that the graph has placeholders for."""

    def __post_init__(self) -> None:
        """Find the tensors once; they are asked for with every micro-batch."""
        tensors = tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorInput))
        object.__setattr__(self, "tensors", tensors)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Value, ...]:
        """The tensors of a call, in the order of the graph's inputs, checked.

        Args:
            args: positional arguments, nested as in the example.
            kwargs: keyword arguments, in any order.

        Returns:
            One tensor for each of `tensors`.

        Raises:
            InputError: the structure, a dtype, a rank or a size does not fit.
        """
        return self.check(self.leaves_of(args, kwargs))

    def leaves_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call, in the order of `leaves`.

        Args:
            args: positional arguments, nested as in the example.
            kwargs: keyword arguments, in any order.

        Raises:
            InputError: the structure is not that of the example.
        """
        values, structure = flatten((tuple(args), dict(self._ordered(kwargs))), self.structure)
        if structure is not self.structure:
            raise InputError(
                f"the model is called with arguments {structure}, expected {self.structure}; "
                f"call it with the arguments of the example, or give an example of this call"
            )
        return values

    def check(self, values: Sequence[Any]) -> tuple[Value, ...]:
        """The tensors of a call, in the order of the graph's inputs, checked.

        Args:
            values: its leaves, as `leaves_of` gives them.

        Returns:
            One tensor for each of `tensors`.

        Raises:
            InputError: a constant, a dtype, a rank or a size does not fit.
        """
        flat: list[torch.Tensor] = []
        for leaf, value in zip(self.leaves, values, strict=True):
            if isinstance(leaf, ConstantInput):
                _check_constant(leaf, value)
            else:
                flat.append(_check_tensor(leaf, value))
        shapes = tuple(value.shape for value in flat)
        if shapes not in self.seen:
            self._check_sizes(shapes)
            self.seen[shapes] = None
        return tuple(flat)

    def holds_for(self, shapes: Sequence[torch.Size]) -> bool:
        """Whether tensors of these shapes, one for each of `tensors`, are within it."""
        try:
            self._check_sizes(tuple(shapes))
        except InputError:
            return False
        return True

    def _ordered(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same keyword arguments in the example's order, which the graph was traced in."""
        if kwargs.keys() != set(self.keywords):
            return kwargs
        return {name: kwargs[name] for name in self.keywords}

    def _check_sizes(self, shapes: tuple[torch.Size, ...]) -> None:
        bound: dict[sympy.Symbol, int] = {}
        origin: dict[sympy.Symbol, str] = {}
        checks = []
        for leaf, shape in zip(self.tensors, shapes, strict=True):
            for dim, (expected, found) in enumerate(zip(leaf.sizes or (), shape, strict=False)):
                where = f"{leaf.name}.size({dim})"
                if isinstance(expected, sympy.Symbol) and expected not in bound:
                    bound[expected], origin[expected] = found, where
                else:
                    checks.append((where, expected, found))
        for where, expected, found in checks:
            if _value(expected, bound) not in (found, None):
                raise InputError(
                    f"{where} is {found}, expected {_shown(expected, origin, bound)}; the example "
                    f"fixed it: give inputs of that size, or an example of this one"
                )
        for condition in self.conditions:
            if _value(condition, bound) is sympy.false:
                raise InputError(
                    f"the model takes another path for these inputs: found "
                    f"{_sizes_found(condition, origin, bound)}, expected "
                    f"{_shown(condition, origin)}; give inputs within that, or an example of these"
                )


def flatten_call(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten a call the one way that is used everywhere.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        The leaves, and the structure that rebuilds (args, kwargs) from them.
    """
    return flatten((tuple(args), dict(kwargs)))


@dataclass(frozen=True, slots=True)
class OutputTemplate:
    """How the model's own output is rebuilt from the graph's values."""

    structure: pytree.TreeSpec
    """How the output nests, down to the model's own classes."""
    leaves: tuple[int | ConstantInput, ...]
    """For each leaf the position of its value among the graph's outputs, or a constant."""

    def unflatten(self, values: Sequence[Any]) -> Any:
        """Rebuild the output.

        Args:
            values: the graph's outputs, in order.

        Returns:
            What the model itself would return.
        """
        leaves = [values[leaf] if isinstance(leaf, int) else leaf.value for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


def _check_constant(leaf: ConstantInput, value: Any) -> None:
    same = type(value) is type(leaf.value) and not isinstance(value, torch.Tensor)
    if not same or value != leaf.value:
        raise InputError(
            f"{leaf.name} is {_described(value)}, expected {leaf.value!r} as in the example; "
            f"give a tensor in the example if it is to vary, or an example with this value"
        )


def _check_tensor(leaf: TensorInput, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"{leaf.name} is {_described(value)}, expected a tensor of {leaf.dtype} with "
            f"{leaf.rank} dimensions; give a tensor as in the example"
        )
    if value.dtype != leaf.dtype:
        raise InputError(
            f"{leaf.name} has dtype {value.dtype}, expected {leaf.dtype}; "
            f"convert it with .to({leaf.dtype}), or give an example of this dtype"
        )
    if value.dim() != leaf.rank:
        raise InputError(
            f"{leaf.name} has {value.dim()} dimensions, {tuple(value.shape)}, expected "
            f"{leaf.rank}; reshape it, or give an example of this shape"
        )
    return value


def _value(expected: Size, bound: Mapping[sympy.Symbol, int]) -> Any:
    """An expression at the sizes found; None while a symbol in it is not known."""
    if isinstance(expected, int):
        return expected
    value = expected.xreplace({symbol: sympy.Integer(size) for symbol, size in bound.items()})
    if value in (sympy.true, sympy.false):
        return value
    return int(value) if value.is_Integer else None


def _shown(
    expected: Size,
    origin: Mapping[sympy.Symbol, str],
    bound: Mapping[sympy.Symbol, int] | None = None,
) -> str:
    if isinstance(expected, int):
        return str(expected)
    names = {symbol: sympy.Symbol(where) for symbol, where in origin.items()}
    text = str(expected.xreplace(names))
    return f"{text} = {_value(expected, bound)}" if bound else text


def _sizes_found(
    condition: Expression, origin: Mapping[sympy.Symbol, str], bound: Mapping[sympy.Symbol, int]
) -> str:
    symbols = sorted(condition.free_symbols & origin.keys(), key=str)
    return ", ".join(f"{origin[s]} = {bound[s]}" for s in symbols)


def _described(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, torch.Tensor) else repr(value)
