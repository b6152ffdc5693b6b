"""A Python object that the user named as package.module:attribute."""

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
    """A function that the user names; the value is how a message describes it."""

    FACTORY = "a function that makes the model"
    PREPROCESS = "a function that makes the model's arguments"
    POSTPROCESS = "a function that makes rows of the output"


def source_file(name: str) -> Path | None:
    """The file of the module in package.module:attribute; None if it has none."""
    _search_here()
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def sources_of(name: str) -> list[Path]:
    """The files that what a name stands for is made of, as far as they are the user's.

    Args:
        name: package.module:attribute, which can be imported.

    Returns:
        In order: the module's own file, and those of all that it imports, and they theirs, wherever
        in a file: from the same package, and from beside it unless it is an installed one.
    """
    _search_here()
    module = importlib.import_module(name.partition(":")[0])
    top = module.__name__.partition(".")[0]
    root = _root(sys.modules[top])
    own = top if _INSTALLED & set(root.parts) else ""
    found, waiting = dict[str, Path](), [module.__name__]
    while waiting:
        each = waiting.pop()
        file = _file_of(root, each)
        if each in found or file is None or own not in ("", each.partition(".")[0]):
            continue
        found[each] = file
        waiting += _imported(file, each)
    return sorted(found.values())


def _root(top: ModuleType) -> Path:
    """The folder that a top-level module or package is in."""
    path = next(iter(getattr(top, "__path__", ())), None) or top.__file__ or ""
    return Path(path).parent


def _file_of(root: Path, name: str) -> Path | None:
    place = root.joinpath(*name.split("."))
    files = (place.parent / f"{place.name}.py", place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported(file: Path, name: str) -> Iterator[str]:
    """What a module's source imports: modules, and names that may be modules."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_path(name: str, function: UserFunction) -> Any:
    """The function that a name stands for, imported.

    Args:
        name: package.module:attribute; modules in the working directory can be imported.
        function: which one the user names.

    Returns:
        A function, or another object that can be called.

    Raises:
        InputError: there is no such module or attribute, or it cannot be called.
    """
    expected = function.value
    path, separator, attribute = name.partition(":")
    if not (path and separator and attribute):
        raise InputError(f"found {name!r}, expected package.module:name of {expected}; name both")
    _search_here()
    try:
        found: Any = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"no module {error.name!r} for {name!r}, expected one that Python can import; "
            f"start in its directory, or set PYTHONPATH"
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
    """Commands installed by pip do not search the working directory, scripts do."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
