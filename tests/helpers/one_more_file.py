"""Adds a file to a package of formats or tasks, without changes of other files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ADDED = Path(__file__).parent / "added"


@contextmanager
def one_more_file(package: ModuleType, name: str, folder: Path) -> Iterator[None]:
    """Add a file of tests/helpers/added to a package for the duration of the context.

    Args:
        package: a package whose files are found by a registry.
        name: name of the file.
        folder: a path that does not exist; the new folder is added to the package.
    """
    folder.mkdir()
    shutil.copy(ADDED / name, folder)
    module = name.removesuffix(".py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        try:
            yield
        finally:
            if sys.modules.pop(f"{package.__name__}.{module}", None) is not None:
                delattr(package, module)
