"""Imports an object that the user named as package.module:attribute, and finds its source files."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterator
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pipepar.errors import InputError

_INSTALLED: Final = {"site-packages", "dist-packages"}


class UserFunction(Enum):
    """A kind of function that the user names; the value describes it in messages."""

    FACTORY = "a function that makes the model"
    PREPROCESS = "a function that makes the model's arguments"
    POSTPROCESS = "a function that makes rows of the output"


def source_file(name: str) -> Path | None:
    """Return the source file of the module in package.module:attribute.

    Returns:
        None if the module is not found or has no file. The module is not imported, but its parent
        packages are.
    """
    _search_here()
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def sources_of(name: str) -> list[Path]:
    """Return the user's source files that an object depends on.

    Args:
        name: package.module:attribute; the module is imported.

    Returns:
        The files of the module and of all modules that it imports, directly or indirectly, sorted.
        Only modules of the same top-level package count, and those next to it if it is not
        installed.
    """
    _search_here()
    module = importlib.import_module(name.partition(":")[0])
    top = module.__name__.partition(".")[0]
    root = _root(sys.modules[top])
    installed = bool(_INSTALLED & set(root.parts))
    found, pending = dict[str, Path](), [module.__name__]
    while pending:
        each = pending.pop()
        file = _file_of(root, each)
        if each in found or file is None or (installed and each.partition(".")[0] != top):
            continue
        found[each] = file
        pending += _imported(file, each)
    return sorted(found.values())


def _root(top: ModuleType) -> Path:
    """Return the folder that contains a top-level module or package."""
    path = next(iter(getattr(top, "__path__", ())), None) or top.__file__ or ""
    return Path(path).parent


def _file_of(root: Path, name: str) -> Path | None:
    """Return the file of a module below a folder; None if there is none."""
    place = root.joinpath(*name.split("."))
    files = (place.parent / f"{place.name}.py", place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported(file: Path, name: str) -> Iterator[str]:
    """Yield the names that a module's source imports; some of them may not be modules."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else ()), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_path(name: str, function: UserFunction) -> Any:
    """Import a function that the user named.

    Args:
        name: package.module:attribute; the attribute may be dotted. Modules in the working
            directory can be imported.
        function: the kind of function, for messages.

    Returns:
        The function, or another callable object.

    Raises:
        InputError: the name has another form, the module, a module that it imports or the attribute
            does not exist, or the object is not callable.
    """
    expected = function.value
    path, separator, attribute = name.partition(":")
    if not (path and separator and attribute):
        raise InputError(
            f"found {name!r}, expected package.module:name of {expected}; give both parts"
        )
    _search_here()
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"no module {error.name!r} for {name!r}, expected one that Python can import; "
            f"start pipepar in its directory, or set PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(
                f"no {attribute!r} in module {path!r}, expected {expected}; "
                f"check the name after the colon"
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}, expected {expected}")
    return found


def _search_here() -> None:
    """Insert the working directory at the front of `sys.path`, unless it is there already.

    Python does not add it for an installed command.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
