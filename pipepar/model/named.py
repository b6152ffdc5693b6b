"""A Python object that the user named as package.module:attribute."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipepar.errors import InputError


def source_file(name: str) -> Path | None:
    """The file of the module in package.module:attribute; None if it has none. *Local.*"""
    _search_here()
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


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
