"""Finds the files of a package that each define one thing, such as a task or a format."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any


def names_in(package: ModuleType) -> list[str]:
    """The names of a package's modules, sorted; none of them is imported.

    Args:
        package: its ``__path__`` may have folders beside the package's own.
    """
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(package: ModuleType, name: str, constant: str) -> Any:
    """Import a module of a package and return a constant that it defines.

    Args:
        package: as for `names_in`.
        name: of the module, one of `names_in`.
        constant: its name.

    Raises:
        AttributeError: the module does not define the constant.
    """
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), constant)


def summaries_of(package: ModuleType) -> dict[str, str]:
    """The first line of each module's docstring by the module's name, sorted by it.

    The modules are parsed, not imported: the command line shows these lines, and must not wait for
    torch.

    Args:
        package: as for `names_in`.

    Raises:
        OSError: a file cannot be read.
    """
    files = {file.stem: file for folder in package.__path__ for file in Path(folder).glob("*.py")}
    return {name: _first_line(files[name]) for name in names_in(package) if name in files}


def _first_line(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
