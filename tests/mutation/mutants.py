"""Small bugs of a module: a swapped operator, a number off by one, a call that is left out.

A mutant is identified by its module and its index in the list of all mutants of the syntax tree. So
runs can be repeated, and ranks in other processes make the same mutant.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

ROOT: Final = Path(__file__).parents[2]

_COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
}
_NAMED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Tests compare the facts in a message, not its text.
_WORDS: Final = (ast.Raise, ast.JoinedStr)

Change: TypeAlias = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small bug."""

    module: str
    """Dotted name of the module."""
    index: int
    """Index in the list of the module's mutants."""
    line: int
    """1-based line of the change."""
    text: str
    """Description of the change, such as "Lt becomes LtE"."""

    def __str__(self) -> str:
        return f"{self.module}:{self.index} line {self.line}: {self.text}"


def mutants_of(module: str) -> list[Mutant]:
    """Return all mutants of a module, in the order of its source."""
    changes = _changes(_tree(module))
    return [Mutant(module, at, line, text) for at, (line, text, _) in enumerate(changes)]


def mutated(module: str, index: int) -> ast.Module:
    """Return the syntax tree of a module with one mutant applied."""
    tree = _tree(module)
    _, _, change = list(_changes(tree))[index]
    change()
    return ast.fix_missing_locations(tree)


def path_of(module: str) -> Path:
    """Return the source file of a module."""
    return ROOT / f"{module.replace('.', '/')}.py"


def _tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def _changes(tree: ast.AST) -> Iterator[tuple[int, str, Change]]:
    for node in _walk(tree):
        for text, change in _at(node):
            yield getattr(node, "lineno", 0), text, change


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all nodes below it that can be mutated."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_skipped(child):
                yield from _walk(child)


def _is_skipped(node: ast.AST) -> bool:
    """Return whether a change would have no effect: messages, and zip(strict=True)."""
    return isinstance(node, _WORDS) or (isinstance(node, ast.keyword) and node.arg == "strict")


def _at(node: ast.AST) -> Iterator[tuple[str, Change]]:
    """Yield the possible changes of one node."""
    match node:
        case ast.Compare(ops=[op]):
            other = _COMPARED[type(op)]
            yield f"{_name(op)} becomes {other.__name__}", lambda: _set(node, "ops", [other()])
        case ast.BinOp() | ast.AugAssign() if type(node.op) in _COMPUTED:
            new = _COMPUTED[type(node.op)]
            yield f"{_name(node.op)} becomes {new.__name__}", lambda: _set(node, "op", new())
        case ast.BoolOp(op=old):
            swapped = ast.Or() if isinstance(old, ast.And) else ast.And()
            yield f"{_name(old)} becomes {_name(swapped)}", lambda: _set(node, "op", swapped)
        case ast.UnaryOp(op=ast.Not()):
            # A double negation gives the truth value of the operand.
            inner = ast.UnaryOp(ast.Not(), node.operand)
            yield "not is dropped", lambda: _set(node, "operand", inner)
        case ast.Constant(value=bool(value)):
            yield f"{value} becomes {not value}", lambda: _set(node, "value", not value)
        case ast.Constant(value=int(value) | float(value)):
            yield f"{value} becomes {value + 1}", lambda: _set(node, "value", value + 1)
        case ast.Call(func=ast.Name(id=name)) if name in _NAMED:
            function = ast.Name(_NAMED[name], ast.Load())
            yield f"{name} becomes {_NAMED[name]}", lambda: _set(node, "func", function)
        case ast.Expr(value=ast.Call()):
            words = ast.unparse(node)[:60]
            yield f"{words} is left out", lambda: _set(node, "value", ast.Constant(None))
        case ast.With():
            words = ", ".join(map(ast.unparse, node.items))[:60]
            if all(item.optional_vars is None for item in node.items):
                yield f"with {words} is left out", lambda: _set(node, "items", [_nothing()])


def _nothing() -> ast.withitem:
    """Return a context manager that does nothing and needs no import in the module."""
    return ast.parse("with __import__('contextlib').nullcontext(): pass").body[0].items[0]  # type: ignore[attr-defined,no-any-return]


def _set(node: ast.AST, field: str, value: object) -> None:
    setattr(node, field, value)


def _name(node: ast.AST) -> str:
    return type(node).__name__
