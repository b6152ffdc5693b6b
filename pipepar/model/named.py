"""A Python object that the user named as package.module:attribute."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pipepar.errors import InputError

_INSTALLED: Final = {"site-packages", "dist-packages"}


def source_file(name: str) -> Path | None:
    """The file of the module in package.module:attribute; None if it has none. *Local.*"""
    _search_here()
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def sources_of(name: str) -> list[Path]:
    """The files that what a name stands for is made of, as far as they are the user's. *Local.*

    Args:
        name: package.module:attribute, which can be imported.

    Returns:
        In order: the module's own file, and those of all modules that it has its names from, and
        they theirs, in the same package, or beside it where it is in none.
    """
    _search_here()
    module = importlib.import_module(name.partition(":")[0])
    home = _home(module)
    found, waiting = dict[str, Path](), [module]
    while waiting:
        module = waiting.pop()
        file = getattr(module, "__file__", None)
        if file is None or module.__name__ in found or not Path(file).is_relative_to(home):
            continue
        found[module.__name__] = Path(file)
        named = (_module_of(value) for value in vars(module).values())
        waiting += [sys.modules[each] for each in named if each in sys.modules]
    return sorted(found.values())


def _home(module: ModuleType) -> Path:
    """The folder of a module's whole package; its own file, if it stands alone among packages."""
    top = sys.modules[module.__name__.partition(".")[0]]
    if paths := getattr(top, "__path__", None):
        return Path(next(iter(paths)))
    file = Path(top.__file__ or "")
    return file if _INSTALLED & set(file.parts) else file.parent


def _module_of(value: Any) -> str:
    """The module that something is, or was made in; empty if it does not say."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
    return name if isinstance(name, str) else ""


def import_named(name: str, what: str) -> Any:
    """Import what a name stands for. *Local.*

    Args:
        name: package.module:attribute; modules in the working directory can be imported.
        what: what it should be, for messages: "a function that makes the model".

    Returns:
        The object; it can be called.

    Raises:
        InputError: there is no such module or attribute, or it cannot be called.
    """
    path, separator, attribute = name.partition(":")
    if not (path and separator and attribute):
        raise InputError(f"found {name!r}, expected package.module:name of {what}; name both")
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
                f"no {attribute!r} in module {path!r}, expected {what}; "
                f"check the name after the colon"
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}, expected {what}")
    return found


def _search_here() -> None:
    """Commands installed by pip do not search the working directory, scripts do."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
