"""Inputs and output of a graph: flattening of the model's call, rebuilding of its output."""

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
# An expression over the symbols of dynamic sizes; sympy has no type hints.
Expression: TypeAlias = Any
Size: TypeAlias = int | Expression


@dataclass(frozen=True, slots=True)
class TensorInput:
    """A tensor among the inputs of a model."""

    name: str
    """Name of its placeholder in the graph."""
    dtype: torch.dtype
    """Required element type."""
    sizes: tuple[Size, ...] | None
    """For each dimension the fixed size or the symbol of a dynamic one; None if all are dynamic."""
    rank: int
    """Required number of dimensions."""


@dataclass(frozen=True, slots=True)
class ConstantInput:
    """A leaf of the arguments or of the output that is not a tensor; the graph fixes its value."""

    name: str
    """Its name in messages."""
    value: Any
    """The value in the example."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The structure of the model's arguments, and the requirements of the graph on each."""

    structure: pytree.TreeSpec
    """Nesting of (args, kwargs)."""
    keywords: tuple[str, ...]
    """Names of the keyword arguments, in the example's order."""
    leaves: tuple[TensorInput | ConstantInput, ...]
    """Every leaf, in the order of the structure."""
    conditions: tuple[Expression, ...] = ()
    """Conditions on the symbols; if one is false, the model would take another branch."""
    seen: dict[tuple[torch.Size, ...], None] = field(default_factory=dict, compare=False)
    """Shapes that passed the checks, as a cache; the checks evaluate symbolic expressions."""
    tensors: tuple[TensorInput, ...] = field(init=False)
    """The leaves that are tensors, in the order of the graph's placeholders."""

    def __post_init__(self) -> None:
        """Select the tensors once; every micro-batch needs them."""
        tensors = tuple(leaf for leaf in self.leaves if isinstance(leaf, TensorInput))
        object.__setattr__(self, "tensors", tensors)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Value, ...]:
        """Check a call and return its tensors.

        Args:
            args: positional arguments, nested as in the example.
            kwargs: keyword arguments, in any order.

        Returns:
            One tensor for each of `tensors`.

        Raises:
            InputError: the structure, a constant, a dtype, the number of dimensions or a size
                differs from what the graph requires.
        """
        return self.check(self.leaves_of(args, kwargs))

    def leaves_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of a call.

        Args:
            args: positional arguments, nested as in the example.
            kwargs: keyword arguments, in any order.

        Returns:
            The values, in the order of `leaves`.

        Raises:
            InputError: the structure differs from that of the example.
        """
        values, structure = flatten((tuple(args), dict(self._ordered(kwargs))), self.structure)
        if structure is not self.structure:
            raise InputError(
                f"the model is called with arguments {structure}, expected {self.structure}; "
                f"call it with the arguments of the example, or give an example of this call"
            )
        return values

    def check(self, values: Sequence[Any]) -> tuple[Value, ...]:
        """Check the leaves of a call and return its tensors.

        Args:
            values: the leaves, as `leaves_of` returns them.

        Returns:
            One tensor for each of `tensors`.

        Raises:
            InputError: a constant, a dtype, the number of dimensions or a size differs from what
                the graph requires.
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
        """Whether the graph accepts inputs of these shapes.

        Args:
            shapes: one for each of `tensors`.
        """
        try:
            self._check_sizes(tuple(shapes))
        except InputError:
            return False
        return True

    def _ordered(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return keyword arguments in the example's order, which the structure has too."""
        if kwargs.keys() != set(self.keywords):
            return kwargs
        return {name: kwargs[name] for name in self.keywords}

    def _check_sizes(self, shapes: tuple[torch.Size, ...]) -> None:
        bound: dict[sympy.Symbol, int] = {}
        origin: dict[sympy.Symbol, str] = {}
        checks = []
        for leaf, shape in zip(self.tensors, shapes, strict=True):
            for dim, (expected, found) in enumerate(zip(leaf.sizes or (), shape, strict=False)):
                name = f"{leaf.name}.size({dim})"
                if isinstance(expected, sympy.Symbol) and expected not in bound:
                    bound[expected], origin[expected] = found, name
                else:
                    checks.append((name, expected, found))
        for name, expected, found in checks:
            if _value(expected, bound) not in (found, None):
                raise InputError(
                    f"{name} is {found}, expected {_text(expected, origin, bound)}; the example "
                    f"fixed it: give inputs of that size, or an example of size {found}"
                )
        for condition in self.conditions:
            if _value(condition, bound) is sympy.false:
                raise InputError(
                    f"the model takes another branch for these inputs: found "
                    f"{_sizes_found(condition, origin, bound)}, expected "
                    f"{_text(condition, origin)}; give inputs that satisfy this, or an example "
                    f"with these sizes"
                )


@dataclass(frozen=True, slots=True)
class OutputTemplate:
    """The structure of the model's output, to rebuild it from the outputs of the graph."""

    structure: pytree.TreeSpec
    """Nesting of the output, with the model's own classes."""
    leaves: tuple[int | ConstantInput, ...]
    """For each leaf an index into the graph's outputs, or a constant."""

    def unflatten(self, values: Sequence[Any]) -> Any:
        """Rebuild the output.

        Args:
            values: the graph's outputs, in order.

        Returns:
            The output, of the same structure as the model's own.
        """
        leaves = [values[leaf] if isinstance(leaf, int) else leaf.value for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


def _check_constant(leaf: ConstantInput, value: Any) -> None:
    same_type = type(value) is type(leaf.value) and not isinstance(value, torch.Tensor)
    if not same_type or value != leaf.value:
        raise InputError(
            f"{leaf.name} is {_described(value)}, expected {leaf.value!r} as in the example; "
            f"give a tensor in the example if the value varies, or an example with this value"
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
            f"convert it with .to({leaf.dtype}), or give an example of dtype {value.dtype}"
        )
    if value.dim() != leaf.rank:
        raise InputError(
            f"{leaf.name} has {value.dim()} dimensions, shape {tuple(value.shape)}, expected "
            f"{leaf.rank}; reshape it, or give an example of this shape"
        )
    return value


def _value(expected: Size, bound: Mapping[sympy.Symbol, int]) -> Any:
    """Return the value of an expression at the sizes found; None if a symbol has no size yet."""
    if isinstance(expected, int):
        return expected
    value = expected.xreplace({symbol: sympy.Integer(size) for symbol, size in bound.items()})
    if value in (sympy.true, sympy.false):
        return value
    return int(value) if value.is_Integer else None


def _text(
    expected: Size,
    origin: Mapping[sympy.Symbol, str],
    bound: Mapping[sympy.Symbol, int] | None = None,
) -> str:
    if isinstance(expected, int):
        return str(expected)
    names = {symbol: sympy.Symbol(name) for symbol, name in origin.items()}
    text = str(expected.xreplace(names))
    return f"{text} = {_value(expected, bound)}" if bound else text


def _sizes_found(
    condition: Expression, origin: Mapping[sympy.Symbol, str], bound: Mapping[sympy.Symbol, int]
) -> str:
    symbols = sorted(condition.free_symbols & origin.keys(), key=str)
    return ", ".join(f"{origin[s]} = {bound[s]}" for s in symbols)


def _described(value: Any) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, torch.Tensor) else repr(value)
