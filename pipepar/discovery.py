"""Discovery of modules that each define one object, such as a task or a format."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any


def names_in(package: ModuleType) -> list[str]:
    """Return the sorted names of a package's modules and subpackages without importing them.

    Args:
        package: its ``__path__`` may contain several folders.
    """
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(package: ModuleType, name: str, constant: str) -> Any:
    """Import a module of a package and return the value of a constant that it defines.

    Args:
        package: as for `names_in`.
        name: the name of the module, one of `names_in`.
        constant: the name of the constant.

    Raises:
        AttributeError: the module does not define the constant.
    """
    return getattr(importlib.import_module(f"{package.__name__}.{name}"), constant)


def summaries_of(package: ModuleType) -> dict[str, str]:
    """Return the first docstring line of each module by its name, in the order of the names.

    It is empty for a module without a docstring. Subpackages are omitted. The modules are parsed,
    not imported: `--help` shows these lines and must not load torch.

    Args:
        package: as for `names_in`.

    Raises:
        OSError: a file cannot be read.
        SyntaxError: a file is not valid Python.
    """
    files = {file.stem: file for folder in package.__path__ for file in Path(folder).glob("*.py")}
    return {name: _first_line(files[name]) for name in names_in(package) if name in files}


def _first_line(file: Path) -> str:
    """Return the first line of a module's docstring; empty if it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
