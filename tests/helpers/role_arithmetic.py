"""Finds expressions that derive a role from a rank's number, such as `rank == 0`."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

_GATHERS = {"all_gather", "gather"}
_RANKS = {"world", "group", "comm"}
"""Objects whose `size` is the number of ranks."""
_ROLES = {"root", "source", "sink", "dest"}
"""Parameters that name a rank by its role."""


@dataclass(frozen=True, slots=True)
class Found:
    """An expression that derives a role from a rank's number."""

    function: str
    """Qualified name of its function; empty at module level."""
    line: int
    """1-based."""
    text: str
    """The expression."""


def role_arithmetic(source: str) -> list[Found]:
    """Return the expressions that derive a role from a rank's number, sorted by line.

    These are:

    - a rank that is compared with an integer or with a size minus 1, is subtracted from a size
      minus 1, or is a condition; a rank is a variable or function named `rank` or `..._rank`
    - the size of a world, group or communicator, minus 1
    - an element at a constant index of values gathered from all ranks
    - an integer as the root, source, sink or destination of a call

    Args:
        source: the text of a module.
    """
    visitor = _Visitor()
    visitor.visit(ast.parse(source))
    return sorted(visitor.found, key=lambda found: found.line)


class _Visitor(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: list[Found] = []
        self._scopes: list[str] = []
        self._gathered: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        outer = self._gathered
        if isinstance(node, ast.FunctionDef):
            self._gathered = outer | _gathered_names(node)
        self._scopes.append(node.name)
        self.generic_visit(node)
        self._scopes.pop()
        self._gathered = outer

    visit_ClassDef = visit_FunctionDef

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        flat = [each for side in sides for each in _elements(side)]
        if any(map(_is_rank, flat)) and any(_is_integer(each) or _is_last(each) for each in flat):
            self._add(node)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        peer = _is_last(node.left) and _is_rank(node.right)
        if peer or (_is_last(node) and _is_of_ranks(node.left)):
            self._add(node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        gathered = isinstance(node.value, ast.Name) and node.value.id in self._gathered
        if (gathered or _gathers(node.value)) and _is_integer(node.slice):
            self._add(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg in _ROLES and _is_integer(keyword.value):
                self._add(node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.While | ast.IfExp | ast.Assert) -> None:
        self._conditions([node.test])
        self.generic_visit(node)

    visit_While = visit_IfExp = visit_Assert = visit_If

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._conditions(node.values)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._conditions([node.operand])
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._conditions(node.ifs)
        self.generic_visit(node)

    def _conditions(self, nodes: Iterable[ast.expr]) -> None:
        for node in nodes:
            if _is_rank(node):
                self._add(node)

    def _add(self, node: ast.expr) -> None:
        self.found.append(Found(".".join(self._scopes), node.lineno, ast.unparse(node)))


def _gathered_names(function: ast.FunctionDef) -> set[str]:
    """Return the names of variables that hold values gathered from all ranks."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and _gathers(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _gathers(node: ast.expr) -> bool:
    """Return whether an expression has one element per rank, in the order of ranks."""
    if isinstance(node, ast.ListComp):
        return _gathers(node.generators[0].iter)
    if not isinstance(node, ast.Call):
        return False
    return _name(node.func) in _GATHERS or (
        _name(node.func) in ("list", "tuple") and any(map(_gathers, node.args))
    )


def _is_rank(node: ast.expr) -> bool:
    name = _name(node.func if isinstance(node, ast.Call) else node)
    return name == "rank" or name.endswith("_rank")


def _is_integer(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def _is_last(node: ast.expr) -> bool:
    """Return whether it has the form `... - 1`."""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 1
    )


def _is_of_ranks(node: ast.expr) -> bool:
    """Return whether it is the size of a world, a group or a communicator."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "size"
        and _name(node.value).lstrip("_") in _RANKS
    )


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
