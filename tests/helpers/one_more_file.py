"""A file that is added to a package of formats or tasks, with no edit of another file."""

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
    """The package has a file of tests/helpers/added too.

    Args:
        package: one whose files a registry finds.
        name: of the file.
        folder: an empty one, which becomes a part of the package.
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
